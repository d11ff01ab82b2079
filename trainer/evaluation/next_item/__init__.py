"""Evaluation of next-item models: target ranks over the full catalogue, metrics, results, report.

Packages:
    baselines  popularity, recent popularity, repeat-last, co-occurrence, EASE

Files:
    candidates.py       items that are ranked, by the moment from which each is a candidate
    evaluate.py         evaluation by all workers together
    figures.py          all metrics of one ranking: per user, in total, with intervals
    list_metrics.py     metrics of recommended lists: novelty, popularity, diversity, coverage
    listed.py           items of a file as candidates, and candidates in words
    merged_rows.py      rows of all workers, merged some users at a time
    metrics.py          the tuple of all metrics: one value each
    outputs.py          all files of an evaluation
    queries.py          figures of users with several queries
    read_similarity.py  categories of items, or users that they share, from a dataset
    report.html.j2      template of report.html
    report.py           report.html
    results.py          target ranks to metrics.json and per_user.parquet
    scoring.py          exact target ranks and top lists over a catalogue that is sharded over workers
    similarity.py       similarity of the items of a list
    slices.py           slices by history, time, target and features
    target_counts.py    number of items ahead of each target
    user_values.py      values of users, their weighted mean and its interval
"""
