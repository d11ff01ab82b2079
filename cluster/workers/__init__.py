"""Workers: their group, the jobs they run, and the messages between them and the driver.

Files:
    group.py      workers kept for the stages of a run, and their failures as one message
    jobs.py       jobs of the stages: train, evaluate
    mailbox.py    jobs, events and requests to stop between driver and workers
    ray_train.py  Ray Train's trainer without the actors that Shoal does not use
    worker.py     the loop of a worker: one job after another
"""
