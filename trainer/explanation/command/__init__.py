"""Work of `shoal explain`: explanations of the recommendations of many users, by all workers together, as files.

Files:
    event_groups.py  groups of events of a dataset, for the aggregates of attention
    folder.py        the folder of explanations and its manifest
    measure.py       faithfulness of the methods, measured on the explained users
    outputs.py       tables of attention and the page, which the driver writes
    questions.py     choice of the items that are explained to each user
    request.py       what is asked for, as plain values
    rows.py          explanations as Arrow tables
    selection.py     choice of the methods
    write_part.py    one worker's part of the work
"""
