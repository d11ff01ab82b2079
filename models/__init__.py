"""Single-device model code: tables, attention, encoders, objectives.

Nothing here knows about ranks, files or Ray. Importing this package imports no torch.
"""
