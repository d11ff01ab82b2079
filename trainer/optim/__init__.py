"""Optimizers of dense weights, learning-rate schedules and weight averages.

Files:
    dense.py     the optimizer of dense weights, and which of them decay
    ema.py       moving averages of dense weights
    lion.py      Lion, which torch does not have
    schedule.py  how learning rates go over a run
"""
