"""Evaluation on held-out data, for both tasks.

Packages:
    next_item  ranking metrics over the full catalogue
    ranking    metrics of predicted probabilities

Files:
    confidence.py  confidence intervals that stay within a metric's range
    examples.py    example users of reports
    metric.py      a metric as one value: name, range, direction, explanation
    run_header.py  header of reports: run, model, data, duration, changed settings
"""
