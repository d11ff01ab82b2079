"""Task next_item: predict the next event of a history over the whole catalogue.

Files:
    demand.py  rows that a training step looks up
    task.py    model, stream, global negatives and evaluation
"""
