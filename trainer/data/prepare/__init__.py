"""Preparation of a dataset: two passes over event logs, as functions of one task each, and the work that combines their results.

Files:
    derived.py        datasets of new logs that keep the vocabularies and fits of another dataset
    finish.py         files that cover all partitions, and the manifest
    group_pass.py     second pass, per partition: its rows become a part
    items.py          features of the catalogue's items
    observed.py       suspicious values of the logs, summed for the manifest
    read_pass.py      first pass, per chunk: check rows, spread them over partitions, count values
    rejections.py     counts of rejected rows, and their limit
    sorted_values.py  distinct values with their counts, sorted with bounded memory
    source.py         the manifest's description of the logs, written and read back
    totals.py         sums over all chunks and partitions
    vocabularies.py   values to ids, items to numbers of the catalogue
    work.py           the job, and the journal from which an interrupted one continues
"""
