"""Exact search: scores of users and items a tile at a time, and the best items of each user. Imports torch, and no TorchRec.

Evaluation, `shoal recommend`, the Python API and exports use it. Items are ordered by descending score, and equal scores by
ascending id. The order is total, so no result depends on the size of tiles.

Files:
    score_tiles.py  scores of users and items, a cache-sized tile at a time
    top_lists.py    the best items of each user, kept up to date tile by tile
"""
