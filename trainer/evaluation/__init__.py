"""Evaluation on held-out data, for both tasks.

Packages:
    next_item  ranking metrics over the full catalogue
    ranking    metrics of predicted probabilities

Files:
    confidence.py       confidence intervals that stay within a metric's range
    examples.py         example users of reports
    merged_parts.py     rows of all workers, merged some users at a time
    metric.py           a metric as one value: name, range, direction, explanation
    part_writer.py      a worker's file of results, written while the evaluation runs
    protocol.py         the protocol in words, and the data that it is about
    report_sections.py  data card, plan, times, versions and warnings of reports
    run_header.py       header of reports: run, model, data, duration, changed settings
    slice_features.py   slices by features of users, items and impressions
    slices.py           slices of users or impressions, and the worst of them
    sorting.py          sorting of arrays in temporary files
    spooled.py          arrays with an entry per user or impression, in temporary files
    training_cost.py    cost of a training for the report: FLOPs, speed, stages
"""
