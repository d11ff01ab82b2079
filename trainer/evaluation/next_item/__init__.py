"""Evaluation of next-item models: target ranks over the full catalogue, metrics, results, report.

Files:
    candidates.py   items that are ranked, by the moment from which each is a candidate
    evaluate.py     evaluation by all workers together
    listed.py       items of a file as candidates, and candidates in words
    metrics.py      hr, ndcg, recall, map, mrr, coverage: one value each
    outputs.py      all files of an evaluation
    queries.py      metrics of users with several queries
    report.html.j2  template of report.html
    report.py       report.html
    results.py      target ranks to metrics.json and per_user.parquet
    scoring.py      exact target ranks over a catalogue that is sharded over workers
"""
