"""Comparison of models on the same users, from stored evaluations: paired differences with intervals, tests and verdicts.

Files:
    bootstrap.py      paired bootstrap over users
    compare.html.j2   template of compare.html
    comparison.py     from folders to a comparison
    differences.py    difference of two models in one metric
    evaluations.py    stored evaluations: where they are, and their content
    impressions.py    users' shares in metrics, from the impressions of a ranking model
    mapped_tables.py  tables in temporary files
    outputs.py        compare.json and compare.html
    paired_tests.py   sign test, randomisation test, Holm's correction
    protocols.py      refuses other protocols, users and targets
    report.py         compare.html
    sides.py          runs and groups of seeds; their settings and cost
    slices.py         differences on parts of the users or impressions
    verdicts.py       verdicts and notes in words
"""
