"""Baselines of next-item models: simple recommenders that are ranked for the same users, masks, targets and candidates.

Files:
    build.py          the baselines that fit a dataset, counted in one pass over the training part
    co_occurrence.py  items that follow the most recent events in other histories
    ease.py           EASE, a linear model with a closed form
    listed.py         exact target ranks from a few scored items per user in front of a common order
    notes.py          names, descriptions and times, for the driver
    order.py          common order of all items, by counts of events
    popularity.py     popularity, recent popularity and repeat-last
    training_part.py  one pass over the training part, shared by all counters
"""
