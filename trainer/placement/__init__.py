"""Where tables are placed: what steps ask of them, the plan of a job, and what it was measured to cost.

Files:
    loads.py   what a training step asks of each table
    plan.py    the plan of a run's tables
    record.py  what its look-ups cost, beside what was predicted: placement.json
"""
