"""Sharded tables: plans applied, rows initialised, gradients and optimizers.

Files:
    apply_plan.py     tables sharded as a plan says, with optimizers fused into their backward pass
    communication.py  rows and gradients in fewer bits on their way
    fused.py          the tables that fbgemm updates, and the number of updates that it corrects for
    gradient_norm.py  the norm of the gradient of table rows, as if all ranks were one
    initialize.py     weights as a function of seed, table, row and column
    local_shards.py   which tensors are tables, and what of them lies on a rank
    measure.py        what looking up and updating each table really costs
    optimizers.py     fused and dense optimizers as one
    pad_bags.py       equally many bags on every rank, where parts of them are added up
    reset_rows.py     rows as if they had never been trained
"""
