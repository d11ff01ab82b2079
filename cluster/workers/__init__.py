"""Workers: their group, the jobs they run, and the messages between them and the driver.

Files:
    budget.py     failures that are allowed, and waits before restarts
    failures.py   causes of failed workers as one line
    group.py      workers kept for the stages of a run
    heart.py      signs of life of a rank, and the time that its start takes
    jobs.py       jobs of the stages: train, evaluate
    kill.py       processes of ranks on their machine: whether one is alive, and its end
    mailbox.py    jobs, events and requests to stop between driver and workers
    memory.py     free memory of a machine or container
    metrics.py    metrics for Prometheus by Ray's exporter
    moves.py      decision to leave nodes that are taken back, and to use nodes that were added
    nodes.py      nodes that can hold workers now
    quick_imports.py  imports without the garbage collector
    rank_log.py   log of a rank in the run folder
    ray_train.py  Ray Train's trainer with Shoal's budgets, without the actors that Shoal does not use
    restarts.py   decision after a failure, in Ray Train's controller
    scaling.py    size of a group of workers that is about to start, in Ray Train's controller
    watchdog.py   ranks that stopped or make no progress
    worker.py     the loop of a worker: one job after another
"""
