"""Run config: TOML files, overrides, defaults that depend on other settings, and checks across sections.

Files:
    credentials.py  credentials inside URIs, to be refused
    defaults.py     what a config leaves out and another setting decides
    file.py         a config file, and the one that it lies over
    run_config.py   the whole config: TOML, overrides, cross-checks, what makes a run the same run
"""
