"""Ray cluster: sessions, tokens, job submission and task pools.

Files:
    address.py    checks that a cluster answers at an address before Ray joins it
    session.py    joining a Ray cluster, or starting one here
    submit.py     the same command as a Ray job
    task_pool.py  numbered tasks on Ray, a bounded number at a time
    token.py      when this process sends Ray's token
"""
