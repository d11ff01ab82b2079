"""The sequence dataset: its format, its folder, and how events become histories.

Files:
    card.html.j2           template of the data card
    card.py                card.html and card.json
    card_plots.py          plots of the data card
    checks.py              checks with verdicts: leakage, overlap of training and test, and others
    features.py            features encoded for storage; numbers fitted to the training part
    folder.py              the dataset folder: ownership, work area, clean-up
    grouping.py            events partitioned by user, sorted, and filtered
    hashing.py             hashes of ids, distinct counts and fair samples
    leakage.py             features that reveal a label
    log_checks.py          checks of the logs: ids, times, quoted line breaks
    manifest.py            format of the dataset and its manifest
    partition.py           one partition of the logs as rows of the dataset
    partition_events.py    a partition's events, sorted by user and time
    partition_features.py  features of a partition's events and users, encoded and fitted
    profile.py             statistics for the data card
    splits.py              bounds of the training, validation and test parts of histories
    tied_order.py          order of events with equal times, compared with that of item ids
    vocabulary.py          raw values of ids, read back
    writer.py              files of parts, cuts, vocabularies and items
"""
