"""Use of a trained model in one process, without Ray and without a process group.

Files:
    candidates.py     the items that may be recommended
    encoder.py        raw events and impressions, encoded as the dataset encodes them
    lists.py          recommendation lists as tables
    live_history.py   one history that grows, with kept keys and values
    look_up.py        look-ups in whole tables
    moments.py        moments of requests, in the unit of a dataset's times
    next_item.py      recommendations, scores and vectors of next-item models
    ranking.py        probabilities of rankers, and of the same candidates for many users
    requests.py       histories, each with the moment of a request
    stored.py         histories of a dataset, by user
    trained_model.py  the model of a checkpoint, with whole tables
"""
