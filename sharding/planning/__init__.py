"""From tables, their use and the devices to a plan, with what it will cost. A function: no device, worker or file is touched.

Files:
    calibrate.py       its constants, fitted to what a run measured
    costs.py           the cost model: bytes and seconds of every table on every rank
    improve.py         a layout made better by moves and swaps
    layout.py          tables put down on ranks where it hurts least
    load.py            what a step asks of a table
    measured.py        what look-ups really cost, as a value
    options.py         the ways in which one table may lie, with their costs
    planned_tables.py  a plan with all that it was made from
    planner.py         the plan of all tables
    prediction.py      what a plan will cost
    refusals.py        what to say when tables do not fit
    shares.py          what of every table lies on every rank, as arrays
    topology.py        the devices, how fast they are, and the constants of the cost model
    units.py           bytes, seconds and counts as people read them
    warnings.py        what is unlucky about a plan that works
"""
