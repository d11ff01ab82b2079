"""Use of a trained model in one process, without Ray and without a process group.

Files:
    encoder.py        raw events and impressions, encoded as the dataset encodes them
    live_history.py   one history that grows, with kept keys and values
    next_item.py      recommendations, scores and vectors of next-item models
    ranking.py        probabilities of rankers
    requests.py       histories, each with the moment of a request
    stored.py         histories of a dataset, by user
    trained_model.py  the model of a checkpoint, with whole tables
"""
