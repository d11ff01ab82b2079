"""Dynamic ids: raw ids to table rows, with admission and eviction, divided over ranks by id.

Files:
    block_tensors.py  tensors in contiguous blocks over ranks, for checkpoints
    entries.py        the ids of one rank with the state of each
    eviction.py       the order of evictions, computed for many evictions at a time
    hash_index.py     a vectorised hash table
    id_counts.py      counts of the ids of a global batch, over all ranks
    mapping.py        the update of the mapping from raw ids to rows, and look-ups
    owners.py         the rank that owns an id, and the exchange of values with owners
    saved.py          the form of a mapping in checkpoints
    selection.py      the smallest keys of all ranks
    state.py          the state of one rank
"""
