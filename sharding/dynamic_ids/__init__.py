"""Dynamic ids: raw ids to table rows, with admission and eviction.

Files:
    eviction.py    the order of evictions, computed for many evictions at a time
    hash_index.py  a vectorised hash table
    id_counts.py   counts of the ids of a global batch, over all ranks
    mapping.py     the mapping from raw ids to rows
"""
