"""Config of a run without its cluster: one file per section, the whole config, and what identifies a run.

The sections of other packages are in models/, sharding/ and trainer/data/logs/. Importing this package imports no torch.

Files:
    checkpoint.py  the section [checkpoint]
    checks.py      checks across sections; trainer/tasks/checks.py has those that need metrics
    defaults.py    defaults that depend on other settings
    evaluate.py    the section [evaluate]
    guards.py      the section [guards]
    identity.py    the settings that identify a run, and those that may change between two starts
    job.py         what a worker receives: the config and what is derived from it
    renamed.py     settings that have another name than in earlier versions
    run_config.py  the section [run], and all sections together
    split.py       the section [split]
    storage.py     the section [storage]
    train.py       the section [train] with early stopping and daily training
"""
