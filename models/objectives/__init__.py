"""What the training minimises. Importing this package imports no torch.

Files:
    chunked_scores.py  sums of losses of scores that are never all held
    config.py          its settings
    loss.py            the loss of a batch under the configured objective
    products.py        matrix products under autocast, into memory that is there
    sampled.py         sampled softmax, binary cross-entropy and gBCE
    softmax.py         cross-entropy over the whole catalogue
"""
