"""Data jobs as Ray tasks: preparing a dataset from event logs, and generating synthetic logs.

Files:
    prepare.py       event logs to a sequence dataset, as Ray tasks
    prepare_with.py  new logs to a dataset with the vocabularies of an existing one
    synth.py         synthetic logs as Ray tasks
"""
