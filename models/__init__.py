"""Single-device model code: tables, attention, encoders, objectives.

Nothing here knows about ranks, files or Ray. Importing this package imports no torch.

Files:
    config.py            settings of model, encoder and objective
    costs.py             what a model costs: FLOPs by part, parameters, bytes, from settings alone
    dense_parameters.py  how many dense weights encoders have
    tables.py            embedding tables as TorchRec modules
"""
