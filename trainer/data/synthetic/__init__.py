"""Event logs with planted structure, and the truth about them.

Files:
    folder.py            the folder of a log, its files made independently
    impression_world.py  their settings and world
    impressions.py       logs of impressions whose chances of a click are known
    log.py               event logs, and the truth about them
    world.py             their settings and the world that users share
"""
