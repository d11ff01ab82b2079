"""Data jobs as Ray tasks: prepare a dataset from event logs, and generate synthetic logs.

Files:
    prepare.py  event logs to a sequence dataset, as Ray tasks
    synth.py    synthetic logs as Ray tasks
"""
