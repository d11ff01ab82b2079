"""`shoal study`: many runs that differ in settings and seeds, side by side. Importing it loads neither torch nor ray.

Files:
    collect.py          metrics of finished trials, read back
    command.py          `shoal study`: prepare, run pending trials, write results
    config.py           settings of a study file
    costing.py          cost of each trial by the cost model, on its dataset
    effects.py          effect of each setting, averaged over the others
    execute.py          runs trials with Ray Tune, as many at a time as the cluster holds
    headline.py         header of the page: the study, its best point and that point's settings
    labels.py           places of labels in plots, without overlap
    outputs.py          results.json, results.csv, table.md, the page
    plots.py            plots of quality against cost
    record.py           trial.json: status, results and cost of a trial
    statistics.py       intervals over seeds and users, the Pareto front
    study.html.j2       template of the study page
    summary.py          one row per point, ranked, with differences from the first
    trial.py            one trial: the stages of a run
    trials.py           a study to its trials, all checked before anything starts
"""
