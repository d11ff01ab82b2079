"""From a dataset to batches: the order of examples, row groups, jagged batches of one rank.

Files:
    catalogue.py          table rows and features of every item id
    columns.py            packed columns taken, joined and cut
    day_examples.py       what training by days counts: rows on a day
    days.py               the training period cut into days, and what each has
    examples.py           what training counts: rows, or windows of their histories
    global_batches.py     the global batches of that order, and a rank's share of each
    held_out.py           held-out histories of one rank
    histories.py          training histories as jagged batches of one rank
    impression_counts.py  training examples of a ranker, counted for its cost model
    impressions.py        impressions beside their histories, in training and held out
    masking.py            which events of a training history are masked
    negatives.py          how negatives are drawn, and how likely each is
    order.py              the order of examples, a function of seed and epoch
    part_files.py         the Parquet files, opened when needed, checked and watched
    prefetch.py           an iterator run ahead in a thread
    row_groups.py         row groups as packed arrays
    shares.py             a rank's share of each step, of either task
    target_counts.py      how often each item is a target, for logq = "counts"
"""
