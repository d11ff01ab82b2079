"""Training loop: model construction, the step, logging, evaluation, saving and resuming.

Files:
    build.py              job to sharded model, optimizers, stream and step
    checkpoints.py        saving and resuming of a training
    compiled_kernels.py   compiled kernels of the model, the same on all ranks
    compiled_layers.py    layers that torch.compile compiles
    days.py               timetable of daily training
    early_stopping.py     the best evaluation so far, and when to stop after it
    epochs.py             timetable of training by epochs
    evaluations.py        validation during training, and evaluation of the next day
    host_copy.py          numbers of a device on their way to the host
    loss_spikes.py        detection of losses far above the recent ones
    measure_placement.py  measured cost of a run's plan: placement.json
    memory.py             peak memory, and return of freed memory to the system
    nonfinite.py          warning or end of training after non-finite steps
    pace.py               events per second, time left, imbalance of ranks
    products.py           precision of matrix products on GPUs
    profiling.py          traces of chosen steps by torch's profiler
    progress.py           metrics.jsonl, TensorBoard and messages to the driver
    rank_measures.py      measurements of one rank, for a monitoring system
    same_run.py           check that a checkpoint is of this run and dataset
    state.py              state that the loop carries from step to step
    step.py               one step: look-up, forward, backward, agreement, update
    step_clock.py         time per part of a step
    step_result.py        result of a step, computed by the host and by the device
    stragglers.py         a rank that is much slower than the others
    timetable.py          protocol of epochs and days: where to start, what is due when
    timetables.py         choice of the timetable
    trackers.py           MLflow and Weights & Biases
    train.py              the loop: step, report, evaluate, save, stop
    validations.py        record of concurrent evaluations
"""
