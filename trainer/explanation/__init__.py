"""Explanations: how much each event of a history contributes to the score of an item.

Packages:
    aggregates  where attention goes, over many histories
    command     the work of `shoal explain` on the workers, and its files
    page        the page of explanations

Files:
    attribution.py  values of a method, one per event
    explained.py    what methods need of a model, for both tasks and for sharded tables
    heads.py        effects of attention heads
    occlusion.py    fall of the score without each event
    questions.py    histories with the item that is scored, as packed arrays
    removal.py      what it means to remove an event
"""
