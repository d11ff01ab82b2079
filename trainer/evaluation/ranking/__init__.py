"""Held-out impressions scored: metrics of probabilities and of order, baselines, intervals, results, report.

Files:
    baselines.py    rates of items and users in the training impressions
    day_results.py  what was found so of every day, and the mean
    evaluate.py     evaluation by all ranks together
    intervals.py    their intervals, with users as what is drawn
    labels.py       where a label is defined, and what impressions weigh
    metrics.py      auc, gauc, log loss, ne, calibration, as sums that can be shared
    names.py        what they are called
    progressive.py  the next day, before it is trained
    reliability.py  groups of like predictions, and ROC curves
    report.html.j2  its template
    report.py       report.html
    results.py      scores to metrics.json, per_impression.parquet and per_user.parquet
"""
