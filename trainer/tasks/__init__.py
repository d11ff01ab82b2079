"""What differs between the tasks: model, training stream, what a batch is given of the global one, evaluation.

Each task is a package with the same files: `task.py`, which implements `Task`, and `demand.py`, which implements `Demand`.

Files:
    demand.py  protocol: rows that a training step looks up, for the planner
    task.py    protocol: model, stream and evaluation, for the loop and the stages
"""
