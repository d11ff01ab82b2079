"""Batches: jagged histories and their micro-batches.

Files:
    history_batch.py   what a model is given for one step
    jagged.py          the layout of a jagged batch, and its events as padded blocks and back
    merge_requests.py  look-ups of a batch's items, and then of more
    micro_batches.py   a batch in pieces that are encoded one after another
"""
