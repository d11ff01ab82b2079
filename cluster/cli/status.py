"""`shoal status`: the state of a run, or of all runs of a folder."""

import time
from dataclasses import asdict
from typing import Annotated

import typer

from cluster.cli.options import AsJson, console_for, print_json
from trainer.storage.objects.paths import path_of


def status(
    run_dir: Annotated[
        str, typer.Argument(metavar="[RUN_DIR]", help="run folder, or a folder of runs", show_default="runs")
    ] = "runs",
    as_json: AsJson = False,
) -> None:
    """Show the stages of a run, how far training is, its best checkpoint and its reports; or a line for each run of a folder."""
    from cluster.driver.all_runs import read_runs, runs_table
    from cluster.driver.status import read_status, status_table

    folder = path_of(run_dir)
    console = console_for(False)
    if not (folder / "config.json").exists() and folder.is_dir():
        lines = read_runs(folder)
        if as_json:
            print_json({"runs": [asdict(line) for line in lines]})
        else:
            console.print(runs_table(lines, time.time()))
        return
    run_status = read_status(folder)
    if as_json:
        print_json(asdict(run_status))
    else:
        console.print(status_table(run_status, time.time()))
