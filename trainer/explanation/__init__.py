"""Explanations: how much each event of a history contributes to the score of an item.

Packages:
    aggregates    where attention goes, over many histories
    command       the work of `shoal explain` on the workers, and its files
    faithfulness  what removing the named events does to the answer, with intervals and sanity checks
    page          the page of explanations

Files:
    attention.py    weights of attention, per layer and head
    attribution.py  values of a method, one per event
    baselines.py    where the paths of integrated gradients begin
    catalogue.py    candidates of a next-item model: all items but the viewed ones
    explained.py    what methods need of a model, for both tasks and for sharded tables
    gradients.py    gradients of scores, and gradient x input
    heads.py        effects of attention heads
    history.py      explanation of one history in this process, as a table
    integrated.py   integrated gradients
    methods.py      all methods by name
    occlusion.py    fall of the score without each event
    questions.py    histories with the item that is scored, as packed arrays
    removal.py      what it means to remove an event
    rollout.py      attention through all layers
    smallest_set.py  fewest events to remove for another top item
    top_items.py    the two best items for variants of histories
"""
