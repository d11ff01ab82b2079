"""Cost of a training on its dataset by the cost models (models/costs.py, models/ranking/costs.py). Nothing is run.

Files:
    matmul_peak.py  peak rate of matrix products that a training has measured: matmul_peak.json
    next_item.py    input of a training step of a next-item model
    ranking.py      training impressions of a dataset, for the costs of rankers
    training.py     costs of a config on the facts of a dataset
"""
