"""Command line: one file per command.

Files:
    __main__.py     `python -m cluster.cli`, the same as `shoal`
    app.py          the commands
    checkpoint.py   those about checkpoints
    config_docs.py  writes docs/configuration.md from the settings
    convert.py      `shoal convert`
    doctor.py       `shoal doctor`
    evaluate.py     `shoal evaluate`
    options.py      arguments, options and output that commands share
    plan.py         `shoal plan`
    prepare.py      `shoal prepare`
    reshard.py      the work of `shoal checkpoint reshard`
    run.py          `shoal run`
    status.py       `shoal status`
    study.py        `shoal study`
    submit.py       `shoal submit`
    synth.py        `shoal synth`
    train.py        `shoal train`
"""
