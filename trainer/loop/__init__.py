"""Training loop: model construction, the step, logging, evaluation, saving and resuming.

Files:
    build.py              config to sharded model and optimizers
    measure_placement.py  the measuring of that
    memory.py             the peak of memory, and free memory back to the system, since jagged batches fragment the heap
    pace.py               how fast it goes, and how evenly the ranks share it
    same_run.py           whether a checkpoint is of this run
    step.py               one step: look up, encode, lose, agree, update
    step_clock.py         how long its parts take
    train.py              the loop: step, log, evaluate, save, stop
"""
