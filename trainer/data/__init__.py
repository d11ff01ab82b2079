"""Data: event logs, the sequence dataset, and batches read from it.

Packages:
    dataset      the sequence dataset: format, folder, splits, data card
    logs         reading and checking event logs
    prepare      the two passes over logs that make a dataset
    public_sets  converters of public data sets
    stream       order of examples, jagged batches
    synthetic    synthetic logs with known structure

Files:
    inputs.py       which features and times of a dataset a model is given
    item_titles.py  titles of items for reports, from the files of items
"""
