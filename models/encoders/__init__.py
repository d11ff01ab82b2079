"""Encoders of histories. Importing this package imports no torch.

Files:
    block.py    attention, feed-forward, norms, residual gates
    config.py   their parts, and the published ones as presets
    encoder.py  blocks on top of each other: every encoder
    pooling.py  a history as an average weighted by a learned query
    tower.py    layers before scores, of two towers
"""
