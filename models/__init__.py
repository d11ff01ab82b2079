"""Single-device model code: tables, attention, encoders, objectives.

Nothing here knows about ranks, files or Ray. Importing this package imports no torch.

Files:
    config.py            settings of model, encoder and objective
    costs.py             FLOPs per part, parameters and bytes of a model, computed from its settings
    dense_parameters.py  number of dense weights of encoders
    tables.py            embedding tables as TorchRec modules
"""
