"""Agreement between ranks on the global batch before each look-up.

Files:
    dynamic_ids.py     raw ids of a batch to rows of tables with dynamic ids
    item_frequency.py  how often each item is a target, estimated on the way
    negatives.py       negatives drawn from the global batch, and what corrects scores for draws
"""
