"""Layers that several models share.

Files:
    activations.py         ReLU, PReLU and Dice
    dropout.py             dropout with cheap random numbers
    running_statistics.py  activations standardised by what earlier batches were like
"""
