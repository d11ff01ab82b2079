"""Layers that several models share.

Files:
    activations.py         ReLU, PReLU and Dice
    dropout.py             dropout with cheap random numbers
    norms.py               norms of rows, and of events and candidates
    running_statistics.py  activations standardised by running averages of earlier batches
"""
