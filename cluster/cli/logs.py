"""`shoal logs`: what the ranks and the driver of a run wrote."""

from typing import Annotated

import typer

from cluster.cli.options import RunFolder
from trainer.storage.objects.paths import path_of


def logs(
    run_dir: RunFolder,
    rank: Annotated[int | None, typer.Option(min=0, help="rank to show (default: the driver)")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="show what is added, until the run ends")] = False,
    tail: Annotated[int | None, typer.Option(min=0, help="begin with the last lines (default: all)")] = None,
) -> None:
    """Show the log of the driver or of a rank. The logs are in the run folder, so they outlast their nodes."""
    from cluster.driver.rank_logs import follow_log, log_path

    for text in follow_log(path_of(run_dir), log_path(path_of(run_dir), rank), follow, tail):
        typer.echo(text, nl=False)
