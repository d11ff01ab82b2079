"""Trained models in this process, from a run or a checkpoint.

Files:
    given.py             values that a caller gives to a model, as Arrow
    live_recommender.py  recommendations for one user with a growing history
    load.py              the function load
    ranker.py            a ranker: probabilities, recommendations among candidates
    recommender.py       a next-item model: recommendations, scores, vectors
    trained.py           base of the models of both tasks: checkpoint, items, histories in any form
"""
