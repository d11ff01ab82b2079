"""Preparing: the two passes over event logs as functions of one task each, and what they work out together.

Files:
    finish.py        features of items, counts, and the manifest
    group_pass.py    one partition: its rows become a part
    observed.py      observations of the logs, added up for the manifest
    read_pass.py     one chunk: check, spread over partitions, count values
    rejections.py    how many rows were rejected, and when that is too many
    vocabularies.py  values to ids, items to numbers of the catalogue
    work.py          the job, and the journal by which an interrupted one goes on
"""
