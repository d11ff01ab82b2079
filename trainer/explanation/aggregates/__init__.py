"""Aggregates of attention over many histories: its share by group of events, entropy, effective number of events. No torch.

Files:
    groups.py  groups of events: recency, age, hour, features of events and items
    plots.py   plots of the aggregates
    sums.py    mergeable sums over histories, and their means
    tables.py  the aggregates as Arrow tables
"""
