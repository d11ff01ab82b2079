"""Task ranking: predict the labels of impressions from the history before each.

Files:
    daily_training.py  days of a dataset and the first rates of the labels
    demand.py          rows that a training step looks up
    task.py            model, stream and evaluation
"""
