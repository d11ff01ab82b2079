"""Batches: jagged histories and their micro-batches.

Files:
    catalogue_share.py  the items that a rank scores, where ranks divide the catalogue
    history_batch.py    the input of a next-item model for one step
    jagged.py           the layout of a jagged batch; padding and unpadding of its events
    merge_requests.py   adds items to the look-up request of a batch
    micro_batches.py    splits a batch into pieces that are encoded one after another
    transfer.py         all tensors of a batch in one copy to a device
"""
