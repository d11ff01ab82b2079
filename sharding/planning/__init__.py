"""Planning: from tables, their use and the devices to a plan and its predicted cost. A pure function without devices or files.

Files:
    calibrate.py       constants of the cost model, fitted to measurements of runs
    costs.py           the cost model: bytes and seconds of every table on every rank
    improve.py         local search: moves and swaps of tables
    layout.py          greedy placement of tables on ranks
    load.py            the use of a table in a step
    measured.py        measured costs of look-ups, as a value
    options.py         the possible placements of one table, with their costs
    planned_tables.py  a plan with its inputs
    planner.py         the plan of all tables
    prediction.py      the predicted cost of a plan
    refusals.py        the error message if tables do not fit
    shares.py          the share of every table on every rank, as arrays
    topology.py        the devices, their speed, and the constants of the cost model
    units.py           bytes, seconds and counts as text
    warnings.py        warnings about a valid plan
"""
