"""Training system of one worker: data, training loop, checkpoints, evaluation.

Knows nothing of Ray: it receives a rank, a world size and callbacks. Importing this package imports no torch.

Files:
    config.py         settings of logs, split, training, checkpoints, evaluation
    errors.py         errors that the user can fix
    job.py            a run as a worker sees it
    metrics_log.py    metrics.jsonl, TensorBoard and the log of trained examples
    output_folder.py  an output folder that one command writes at a time
    settings.py       settings as flat names, and the differences between two sets
"""
