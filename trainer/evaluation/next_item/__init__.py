"""Evaluation of next-item models: target ranks over the full catalogue, metrics, results, report.

Files:
    evaluate.py     evaluation by all workers together
    metrics.py      hr, ndcg, recall, map, mrr, coverage: one value each
    outputs.py      all files of an evaluation
    report.html.j2  template of report.html
    report.py       report.html
    results.py      target ranks to metrics.json and per_user.parquet
    scoring.py      exact target ranks over a catalogue that is sharded over workers
    slices.py       slices by history, time, target and features
"""
