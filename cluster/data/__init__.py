"""Data jobs as Ray tasks: preparing a dataset from event logs, and generating synthetic logs.

Files:
    prepare.py  event logs to a sequence dataset, as Ray tasks
    synth.py    synthetic logs as Ray tasks
"""
