"""`shoal plan --simulate`: step time, traffic, cost of failures and goodput for several numbers of workers.

Imports neither torch nor ray. Only daily training of a ranker on its dataset loads torch, to count the examples of its days.

Files:
    calibration.py  constants of the dense part, fitted to measured runs
    checkpoints.py  bytes and time of checkpoints, and the cost of failures
    command.py      `shoal plan --simulate`: simulates, writes the files, prints the results
    config.py       constants that a file or an option can set
    drawing.py      plots of the page
    examples.py     lengths of the training examples, and the dense work of each
    failures.py     Young's and Daly's intervals, and goodput
    profiles.py     constants of kinds of devices, with their sources
    report.py       tables, warnings and assumptions as text
    simulate.py     the predictions for all numbers of workers
    step.py         the time of a step by part
    straggler.py    the expected work of the busiest rank
"""
