"""Command line: one file per command.

Files:
    __main__.py     `python -m cluster.cli`, the same as `shoal`
    app.py          the `shoal` command: its commands in order, errors, exit codes
    checkpoint.py   `shoal checkpoint`
    compare.py      `shoal compare`
    config_docs.py  generates docs/configuration.md from the settings
    convert.py      `shoal convert`
    doctor.py       `shoal doctor`
    evaluate.py     `shoal evaluate`
    explain.py      `shoal explain`
    export.py       `shoal export`
    job_arguments.py  arguments of a command that is submitted
    logs.py         `shoal logs`
    options.py      arguments, options and output that commands share
    plan.py         `shoal plan`
    prepare.py      `shoal prepare`
    prune.py        `shoal prune`
    recommend.py    `shoal recommend`
    reshard.py      the work of `shoal checkpoint reshard`
    run.py          `shoal run`
    status.py       `shoal status`
    stop.py         `shoal stop`
    study.py        `shoal study`
    submit.py       `shoal submit`
    synth.py        `shoal synth`
    train.py        `shoal train`
"""
