"""Recommendations of a trained model for many users, by all workers together, as files.

Files:
    chosen_rows.py  full batches of chosen rows of a dataset
    folder.py       the folder of recommendations: parts, manifest, replacement as a whole
    given.py        files of users and items that the user gives
    next_item.py    lists of a next-item model, and similar items
    ranking.py      lists of a ranker, among given candidates
    request.py      what is asked for, as plain values
    run.py          one worker's part of the work
"""
