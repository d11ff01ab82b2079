"""Training system of one worker: data, training loop, checkpoints, evaluation.

Knows nothing of Ray: it receives a rank, a world size and callbacks. Importing this package imports no torch.

Files:
    config.py       settings of logs, split, training, checkpoints, evaluation
    errors.py       errors that a user can mend
    job.py          a run as a worker sees it
    metrics_log.py  metrics.jsonl, TensorBoard, ledger
    settings.py     settings as flat names, and how two sets differ
"""
