"""Streams from a dataset to batches: the order of examples, row groups, and jagged batches of one rank.

Packages:
    exchange  exchange of examples between the ranks, for batches of a budget of events

Files:
    catalogue_reader.py   reads the catalogue: table rows and features of every item id
    columns.py            packed columns: take, join and cut
    day_examples.py       examples of daily training: rows on a day
    days.py               the training period cut into days, with counts of each
    dealing.py            cuts of examples into batches by a budget, and the ranks that get them
    examples.py           examples of training: rows, or windows of their histories
    global_batches.py     global batches, and a rank's share of each
    held_out.py           held-out histories of one rank
    histories.py          training histories as jagged batches of one rank
    impression_counts.py  training examples of a ranker, counted for its cost model
    impressions.py        impressions with their histories, in training and held out
    masking.py            masked events of training histories
    negatives.py          draws of negatives, and their probabilities
    order.py              the order of examples, a function of seed and epoch
    packed.py             packed histories and impressions: flat arrays with offsets
    part_files.py         Parquet files of a dataset, opened on demand and checked
    prefetch.py           runs an iterator ahead in a thread
    queries.py            queries of an evaluation: histories and targets of rows
    row_groups.py         row groups as packed arrays
    shares.py             a rank's share of each step, for both tasks
    stochastic_length.py  events that training keeps of a long history
    target_counts.py      how often each item is a target, for logq = "counts"
"""
