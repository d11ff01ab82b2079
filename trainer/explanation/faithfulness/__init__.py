"""Faithfulness of explanations, measured: what removing the events that an explanation names does to the model's answer.

Files:
    levels.py    how many events are removed
    maps.py      comparison of two explanations: rank correlation, common events
    measure.py   the values of every user, order and level
    metrics.py   pos@K, neg@K, del, ins and cdcg
    orders.py    orders of events: by weights, random, by recency, by popularity
    planted.py   recovery of the planted causes of synthetic logs
    results.py   results as values with a round trip through JSON
    sanity.py    randomised weights, uniform attention, agreement over seeds
    scoring.py   places and probabilities of the explained items
    summary.py   intervals over users, and paired tests against references
    variants.py  the distinct sets of removed events
    words.py     results in plain words
"""
