"""The plan of a run's tables: their loads, the plan, and its measured cost.

Files:
    loads.py   loads of tables in a training step
    plan.py    the plan of a run's tables, made or read
    record.py  predicted and measured cost of the plan: placement.json
"""
