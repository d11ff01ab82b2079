"""Command line: one file per command group.

Files:
    __main__.py     `python -m cluster.cli`, the same as `shoal`
    app.py          the commands
    checkpoint.py   those about checkpoints
    config_docs.py  writes docs/configuration.md from the settings
    convert.py      `shoal convert`
    reshard.py      checkpoint reshard: for which plan
    study.py        that about studies
    synth.py        `shoal synth`
"""
