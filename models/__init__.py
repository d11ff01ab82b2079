"""Single-device model code: tables, attention, encoders, objectives.

Nothing here knows about ranks, files or Ray. Importing this package imports no torch.

Packages:
    attention   attention over jagged histories and its reference
    batches     jagged batches
    compiled    kernels in C++, compiled on the machine that trains
    encoders    encoders and their presets
    features    item, event, user and time features
    layers      shared layers
    next_item   the next-item model
    objectives  losses and negatives
    ranking     rankers of impressions

Files:
    activations.py       number of activations that the backward pass needs
    config.py            settings of model, encoder and objective
    costs.py             FLOPs per part, parameters and bytes of a model, computed from its settings
    dense_parameters.py  number of dense weights of encoders
    devices.py           choices that differ between CPUs and accelerators
    histories.py         histories by their lengths, and the targets that they give
    tables.py            embedding tables as TorchRec modules
"""
