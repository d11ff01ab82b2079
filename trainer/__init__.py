"""Training system of one worker: data, training loop, checkpoints, evaluation.

Knows nothing of Ray: it receives a rank, a world size and callbacks. Importing this package imports no torch.

Packages:
    checkpoint    checkpoints: save, verify, load, reshard
    comparison    comparison of models on the same users
    config        config of a run: sections, derived defaults, identity
    costing       cost of a training by the cost models
    data          from logs to the sequence dataset to batches; public and synthetic logs
    evaluation    held-out evaluation: rankings of the full catalogue, predicted probabilities
    explanation   why an item was recommended, and how far an explanation can be trusted
    export        exports of trained models for serving
    global_batch  agreement between ranks before a look-up
    inference     use of a trained model in one process
    item_search   exact search for the best items of each user
    loop          training loop and the step
    optim         dense optimizers, schedules, weight EMA
    pages         HTML pages and plots
    placement     the plan of a run and its measured cost
    pruning       removal of heads and blocks that contribute little
    recommend     recommendations for many users, by all workers
    storage       hashes, atomic writes, output folders
    tasks         differences between the tasks: the next event of a history, labels of impressions

Files:
    errors.py         errors that a user can fix
    fault_points.py   points at which tests make a rank fail
    metrics_log.py    metrics.jsonl, TensorBoard and the log of trained examples
    output_folder.py  an output folder that one command writes at a time: owner, lock, clean-up
    restart_log.py    restarts.jsonl: failures of workers, and what recovery took
    settings.py       settings as flat names, and the differences between two sets
"""
