"""Data: event logs, the sequence dataset, and batches read from it.

Files:
    inputs.py  features and times of a dataset that a model receives
"""
