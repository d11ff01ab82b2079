"""`shoal study`: many runs that differ in settings and seeds, side by side. Importing it loads neither torch nor ray.

Files:
    collect.py          metrics of finished trials, read back
    command.py          `shoal study`: prepare, run what is not done, write
    config.py           settings of a study file
    costing.py          what each costs by the cost model, on its dataset
    effects.py          what each setting makes, averaged over the others
    execute.py          trials over Ray Tune, as many as the cluster holds
    outputs.py          results.json, results.csv, table.md, the page
    plots.py            quality against cost, as a picture
    ranking_costing.py  the training impressions that the costs of a ranker are of
    record.py           trial.json: whether it is done, and what it took
    statistics.py       intervals over seeds and users, the Pareto front
    study.html.j2       its template
    summary.py          one row per point, ranked, with differences to the first
    trial.py            one trial: the stages of a run
    trials.py           a study to its trials, all checked before anything starts
"""
