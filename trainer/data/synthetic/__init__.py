"""Synthetic event logs with planted structure, and the ground truth about them.

Files:
    folder.py            the folder of a log, with files that are generated independently
    impression_world.py  settings and world of logs of impressions
    impressions.py       logs of impressions with known click probabilities
    log.py               event logs with their ground truth
    world.py             settings and world of event logs
"""
