"""The sequence dataset: its format, its folder, and how events become histories.

Files:
    card.html.j2           its template
    card.py                card.html and card.json
    card_plots.py          its plots
    checks.py              leaks, overlap of training and test, and other checks, with verdicts
    features.py            values encoded, numbers fitted to the training part, and applied
    folder.py              whose a dataset folder is, and attempts that leave no trace
    grouping.py            events partitioned by user, and sorted without those that may not stay
    hashing.py             hashes of ids, distinct counts and fair samples
    leakage.py             features that give a label away
    log_checks.py          checks of the logs: ids, times, quoted line breaks
    manifest.py            its format
    partition.py           one partition of the logs becomes rows
    partition_events.py    its events in order: whose they are, which of them stay
    partition_features.py  features of its events and users, encoded and fitted
    profile.py             what is counted for the data card
    splits.py              where histories are cut into training, validation and test part
    vocabulary.py          the values behind ids, read back
    writer.py              parts, cuts, vocabularies, items
"""
