"""Objectives of training. Importing this package imports no torch.

Files:
    chunked_scores.py   sums of losses over scores, a chunk of scores at a time
    config.py           settings of objectives and negatives
    known_gradients.py  losses with gradients that were computed along with their value
    loss.py             the loss of a batch under the configured objective
    products.py         matrix products under autocast, into allocated memory
    sampled.py          sampled softmax, binary cross-entropy and gBCE
    shared_softmax.py   cross-entropy over a catalogue that ranks divide among them
    softmax.py          cross-entropy over the whole catalogue
"""
