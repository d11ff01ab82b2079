"""Evaluation of ranking models on held-out impressions: metrics, baselines, intervals, results, report.

Files:
    baselines.py     rates of items and users in the training impressions
    day_results.py   results of each day of daily training, and their mean
    evaluate.py      evaluation by all workers together
    example_users.py example users of a report
    intervals.py     confidence intervals of metrics; users are the sampling unit
    judged.py        scored impressions, and the exact sums and counts behind metrics
    labels.py        where a label is defined, and the weights of impressions
    metrics.py       auc, pr_auc, gauc, log loss, ne, calibration: one value each
    names.py         names of baselines, and of metrics with a label
    outputs.py       all files of an evaluation
    over_ranks.py    exact sums and areas over the impressions of all workers
    progressive.py   evaluation of the next day, before it is trained
    reliability.py   groups of similar predictions, and ROC curves
    report.html.j2   template of report.html
    report.py        report.html
    results.py       the content of metrics.json
    scored.py        all scored impressions of a split, merged from the workers' parts
    slices.py        slices of impressions, and those in which the model ranks worse
    tables.py        per_impression.parquet and per_user.parquet
"""
