"""Reads, overrides and checks the config of a command: a run (trainer/config/) and its cluster.

Files:
    credentials.py  credentials inside URIs, to be refused
    explain.py      messages for settings that are refused
    file.py         config files with their base, and overrides
    placement.py    the nodes of workers: labels, strategy, resources
    run_config.py   the section [cluster], the whole config, and the job of a config
"""
