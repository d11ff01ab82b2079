"""Data: event logs, the sequence dataset, and batches read from it.

Files:
    inputs.py       which features and times of a dataset a model is told
    item_titles.py  titles of items for reports, from the files of items
"""
