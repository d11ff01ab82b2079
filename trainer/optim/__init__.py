"""Optimizers of dense weights, sums of their gradients, learning-rate schedules and the weight EMA.

Files:
    dense.py             the optimizer of dense weights and its groups with and without weight decay
    ema.py               exponential moving average of dense weights
    gradient_buckets.py  sums of dense gradients over ranks that start during the backward pass
    lion.py              the optimizer Lion
    schedule.py          learning-rate schedules
"""
