"""`shoal evaluate`: a checkpoint on held-out events."""

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from cluster.cli.options import (
    AsJson,
    ConfigFile,
    Logs,
    Overrides,
    console_for,
    in_view,
    load_with_logs,
    print_json,
)
from cluster.doctor.packages import TRAINING, check_installed

# Written out, so that --help imports no module that knows the splits. A test compares the two.
Split = Literal["validation", "test"]
Checkpoint = Annotated[str | None, typer.Option(help="name or path of a checkpoint (default: the best one)")]
Dataset = Annotated[str | None, typer.Option(help="folder of another prepared dataset to evaluate on")]


def evaluate(
    config: ConfigFile,
    split: Annotated[Split, typer.Option(help="held-out events to evaluate on")] = "test",
    checkpoint: Checkpoint = None,
    logs: Logs = None,
    dataset: Dataset = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a checkpoint on held-out events, on later logs or on another dataset.

    With --logs, --set logs.NAME=VALUE describes these logs, for example their columns; the run keeps its own settings.
    """
    settings, overrides_of_logs = load_with_logs(config, overrides, logs)
    check_installed("evaluate", TRAINING)
    from cluster.driver import driver
    from cluster.driver.other_data import other_data
    from cluster.driver.progress import headline, results_table

    data = other_data(settings, logs, dataset, overrides_of_logs)
    results, report = in_view(as_json, lambda view: driver.run_evaluate(settings, split, checkpoint, view, data))
    if as_json:
        print_json({**asdict(results), "report": str(report)})
    else:
        console = console_for(False)
        console.print(results_table(results))
        console.print(headline(results), highlight=False, soft_wrap=True)
        console.print(f"report: {report}", highlight=False, soft_wrap=True)
