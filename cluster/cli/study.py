"""`shoal study`: many runs, compared."""

from typing import Annotated

import typer

from cluster.cli.options import AsJson, console_for, print_json
from cluster.doctor.packages import TRAINING, check_installed


def study(
    file: Annotated[
        str, typer.Argument(metavar="STUDY", help="TOML file of a study (docs/study.md)", show_default=False)
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show the trials with their parameters and FLOPs, without running them")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="override a setting, such as study.seeds=[1] or train.epochs=2"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a grid or random search over settings with several seeds, and compare quality and cost."""
    from cluster.driver.progress import View
    from cluster.study import command

    planned = command.plan(file, overrides or [])
    console = console_for(as_json)
    if dry_run:
        lines = command.dry_run(planned)
        if as_json:
            print_json({"points": lines, "trials": [trial.name for trial in planned.trials]})
        else:
            command.print_dry_run(planned, lines, console)
        return
    check_installed("study", TRAINING)
    with View(console) as view:
        answer = command.run(planned, view)
    if as_json:
        print_json(command.json_of(answer))
    else:
        command.print_for_people(answer, console)
    if answer.summary.failed:
        raise typer.Exit(1)
