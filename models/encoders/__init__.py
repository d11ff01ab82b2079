"""Encoders of histories. Importing this package imports no torch.

Files:
    block.py    a block: attention, feed-forward, norms, residual gates
    config.py   settings of the parts, with published encoders as presets
    encoder.py  a stack of blocks: every encoder
    merge.py    older events merged into tokens
    pooling.py  a history as an average weighted by a learned query
    tower.py    layers before the scores of two-tower models
"""
