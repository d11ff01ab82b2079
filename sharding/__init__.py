"""Sharded tables of any module with TorchRec tables: process groups, plans, initialisation, optimizers.

Knows nothing of histories, files or Ray. Importing this package imports no torch.

Files:
    config.py   settings of a table, of its ids, of devices and of communication
    errors.py   placement that cannot be
    plan.py     where the shards of every table lie, as a value
    support.py  which ways of holding a table work, and why the others do not
    world.py    a rank among ranks: the collectives
"""
