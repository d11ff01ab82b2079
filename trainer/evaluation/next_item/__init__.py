"""Evaluation of next-item models: ranks over the full catalogue, metrics, results, report.

Files:
    evaluate.py     evaluation by all ranks together
    metrics.py      hr, ndcg, mrr from ranks
    report.html.j2  its template
    report.py       report.html
    results.py      ranks to metrics.json and per_user.parquet
    scoring.py      exact ranks over a catalogue that is sharded over ranks
"""
