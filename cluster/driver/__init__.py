"""Driver: runs the stages of a run in order and records each.

Files:
    driver.py        the stages in order, each recorded, Ctrl-C
    new_logs.py      what a trained run does with log files that came since
    progress.py      what a person sees meanwhile
    run_folder.py    the run folder: lock, config, record of stages
    stage_inputs.py  what the result of each stage depends on, as a digest
    stages.py        how the driver starts a stage, and what it makes of the answers
"""
