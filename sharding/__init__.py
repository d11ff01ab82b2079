"""Sharded tables of any module with TorchRec tables: process groups, plans, initialisation, optimizers.

Nothing here depends on histories, files or Ray. Importing this package imports no torch.

Packages:
    dynamic_ids  raw ids to rows, with admission and eviction
    planning     cost model and planner
    tables       applied plans, initial rows, optimizers of tables

Files:
    config.py   settings of a table, its ids, devices and communication
    errors.py   errors of sharding, and errors that are sent between processes
    plan.py     the shards of every table, as a value
    support.py  which combinations of sharding, kernel and optimizer work, and why others do not
    world.py    the ranks of a run and their collectives
"""
