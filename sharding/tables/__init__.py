"""Sharded tables: application of plans, initial weights, gradients and optimizers.

Files:
    apply_plan.py           shards tables by a plan, with optimizers fused into their backward pass
    cached_rows.py          writes of single rows, also where a GPU caches them
    communication.py        rows and gradients as 16-bit numbers between ranks
    conditional_updates.py  updates that the device leaves out if a step must not be applied
    early_requests.py       requests that are sent before the look-up
    fused.py                fbgemm's tables, and the number of updates for their bias correction
    gradient_norm.py        the norm of the gradient of table rows over all ranks
    initialize.py           weights as a function of seed, table, row and column
    local_shards.py         which tensors are tables, and their parts on a rank
    measure.py              measures look-ups and updates of each table
    optimizers.py           fused and dense optimizers as one
    pad_bags.py             pads requests to the same number of bags on every rank
    reset_rows.py           resets rows to their initial state
"""
