"""Differences between the tasks: model, training stream, completion of batches, evaluation.

Each task is a package with the same files: `task.py`, which implements `Task`, and `demand.py`, which implements `Demand`.

Packages:
    next_item  predict the next event of a history
    ranking    predict the labels of impressions

Files:
    checks.py   checks of a config that need the metrics of its task
    demand.py   protocol: rows that a training step looks up, for the planner
    metrics.py  metrics by task: names, directions, ranges
    outputs.py  files of an evaluation, by task
    results.py  results of an evaluation, of either task
    task.py     what the loop and the stages ask of one
"""
