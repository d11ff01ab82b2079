"""Ray cluster: sessions, tokens, job submission and task pools.

Files:
    address.py    checks an address before Ray joins the cluster
    follow.py     follows the log of a job until a final state is read
    preflight.py  checks before a job: versions, resources and files
    probe.py      the same checks on each node of a cluster, as a short job
    reaper.py     ends what a killed driver leaves of its own session
    room.py       how many workers fit on nodes, and what is missing
    session.py    joins a Ray cluster, or starts one on this machine
    submit.py     runs a command as a Ray job
    task_pool.py  runs numbered tasks on Ray, a bounded number at a time
    token.py      decides whether this process sends Ray's token
"""
