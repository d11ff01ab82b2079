"""Optimizers of dense weights, learning-rate schedules and the weight EMA.

Files:
    dense.py     the optimizer of dense weights and its groups with and without weight decay
    ema.py       exponential moving average of dense weights
    lion.py      the optimizer Lion
    schedule.py  learning-rate schedules
"""
