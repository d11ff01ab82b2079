"""Workers: their group, the jobs they run, and the messages between them and the driver.

Files:
    group.py      workers kept for a run's stages, what they are told and answer, and their failures as one message
    jobs.py       what the workers of a stage do: train, evaluate
    mailbox.py    the mailbox between driver and workers
    ray_train.py  how Ray Train is asked for them
    worker.py     what every worker runs: one work after another
"""
