"""Driver: runs the stages of a run in order and records each.

Files:
    all_runs.py        a line for each run of a folder, for `shoal status`
    concurrent_evaluation.py  validation of a training's checkpoints while it continues
    driver.py          the stages in order, in one Ray session and with the same workers
    evaluate_stage.py  evaluate a checkpoint, unless that was done before
    evaluated_training.py  training, and concurrent evaluation by other workers
    evaluation_queue.py  checkpoints that wait for concurrent evaluation
    existing_run.py    what a submitted command would do with a run that exists
    explain_stage.py   write explanations, unless the same ones are there
    export.py          export of a run's model
    new_logs.py        what a trained run does with log files that arrived since
    other_data.py      later logs and other datasets that a model is evaluated on
    output_stage.py    the flow that the explain and recommend stages share
    prepare_stage.py   make or find the dataset
    progress.py        what a terminal or a log shows while a command runs
    promotion.py       results of concurrent evaluation, the best checkpoint, the end of patience
    prune_stage.py     prune heads and blocks, and compare the pruned models
    rank_logs.py       logs of the driver and of all ranks in the run folder
    recommend_stage.py  write recommendations, unless the same ones are there
    run_folder.py      the config of a run folder
    run_lock.py        one command at a time in a run folder
    run_metrics.py     metrics of a whole training for Prometheus
    signals.py         Ctrl-C and SIGTERM during training
    stage_inputs.py    digests of everything that the result of a stage depends on
    stage_record.py    state.json: which stages are done, and how far the running one is
    status.py          `shoal status`
    stop_request.py    `shoal stop`: a request in the run folder
    train_stage.py     train, unless that was done before
"""
