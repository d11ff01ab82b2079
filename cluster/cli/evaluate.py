"""`shoal evaluate`: a checkpoint on held-out events."""

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from cluster.cli.options import AsJson, ConfigFile, Overrides, console_for, in_view, load, print_json
from cluster.doctor.packages import TRAINING, check_installed

# Written out, so that --help imports no module that knows the splits. A test compares the two.
Split = Literal["validation", "test"]


def evaluate(
    config: ConfigFile,
    split: Annotated[Split, typer.Option(help="held-out events to evaluate on")] = "test",
    checkpoint: Annotated[str | None, typer.Option(help="name or path of a checkpoint (default: the best one)")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a checkpoint on held-out events."""
    settings = load(config, overrides)
    check_installed("evaluate", TRAINING)
    from cluster.driver import driver
    from cluster.driver.progress import headline, results_table

    results, report = in_view(as_json, lambda view: driver.run_evaluate(settings, split, checkpoint, view))
    if as_json:
        print_json({**asdict(results), "report": str(report)})
    else:
        console = console_for(False)
        console.print(results_table(results))
        console.print(headline(results), highlight=False, soft_wrap=True)
        console.print(f"report: {report}", highlight=False, soft_wrap=True)
