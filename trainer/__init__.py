"""Training system of one worker: data, training loop, checkpoints, evaluation.

Knows nothing of Ray: it receives a rank, a world size and callbacks. Importing this package imports no torch.

Files:
    errors.py         errors that a user can fix
    fault_points.py   points at which tests make a rank fail
    metrics_log.py    metrics.jsonl, TensorBoard and the log of trained examples
    output_folder.py  an output folder that one command writes at a time: owner, lock, clean-up
    restart_log.py    restarts.jsonl: failures of workers, and what recovery took
    settings.py       settings as flat names, and the differences between two sets
"""
