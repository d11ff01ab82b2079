"""`shoal status`: the state of a run."""

import time
from dataclasses import asdict
from pathlib import Path

from cluster.cli.options import AsJson, RunFolder, console_for, print_json


def status(run_dir: RunFolder, as_json: AsJson = False) -> None:
    """Show the stages of a run, how far training is, its best checkpoint and its reports."""
    from cluster.driver.status import read_status, status_table

    run_status = read_status(Path(run_dir))
    if as_json:
        print_json(asdict(run_status))
    else:
        console_for(False).print(status_table(run_status, time.time()))
