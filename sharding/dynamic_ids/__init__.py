"""Dynamic ids: raw ids to table rows, with admission and eviction.

Files:
    eviction.py    who goes first, found for many evictions at a time
    hash_index.py  a hash table over many keys at once
    id_counts.py   the ids of a global batch, counted by all ranks together
    mapping.py     raw ids to rows, with admission by frequency and eviction
"""
