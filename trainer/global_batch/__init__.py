"""Agreement between ranks on the global batch before each look-up.

Files:
    catalogue_groups.py  groups of ranks that divide the catalogue among them
    dynamic_ids.py       rows for the raw ids of a batch, in tables with dynamic ids
    item_frequency.py    streaming estimate of how often each item is a target
    negatives.py         negatives drawn from the global batch, and the probabilities for the logQ correction
"""
