"""Layers that several models share.

Files:
    activations.py         ReLU, PReLU and Dice
    dropout.py             dropout with cheap random numbers
    group_norm.py          norms of events and of candidates
    running_statistics.py  activations standardised by running averages of earlier batches
"""
