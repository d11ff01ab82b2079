"""`shoal submit`: a run, or another command on its config, as a job on a Ray cluster."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.options import AsJson, ConfigFile, Overrides, console_for, load_with_logs, print_json
from cluster.doctor.packages import RAY, check_installed
from trainer.errors import UserError
from trainer.storage.objects.paths import path_of


def submit(
    context: typer.Context,
    config: ConfigFile,
    dashboard: Annotated[str, typer.Option(help="address of the cluster's dashboard")] = "http://127.0.0.1:8265",
    wait: Annotated[bool, typer.Option(help="follow the log of the job and exit with its exit code")] = True,
    detach: Annotated[
        bool, typer.Option("--detach", help="return once the job is accepted, as --no-wait does")
    ] = False,
    command: Annotated[
        str, typer.Option(help="command that the job runs; its own options may follow, such as --split or --k")
    ] = "run",
    fork: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="continue a copy of the run, from its newest checkpoint, in this new folder"
        ),
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="use the packages of the cluster's image; only the config travels")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Submit `shoal run`, or another command, as a job to a running Ray cluster.

    Before that it checks that versions, resources, files and the state of the run fit, and names what does not.
    """
    from cluster.cli.job_arguments import job_arguments

    arguments = job_arguments(command, context.args)
    settings, of_logs = load_with_logs(config, overrides, arguments.other_logs)
    check_installed("submit", RAY)
    from cluster.driver.existing_run import fork as forked
    from cluster.ray_cluster.submit import submit as submit_job

    if fork is not None:
        if command not in ("run", "train"):
            raise UserError(f"--fork: continues a training, and --command {command} trains nothing; leave it out")
        settings = forked(settings, path_of(fork).absolute())
    console = console_for(as_json)
    job_id, code = submit_job(
        settings,
        dashboard,
        lambda text: console.print(text, end="", highlight=False, markup=False, soft_wrap=True),
        wait and not detach,
        [command, *arguments.words, *(part for text in of_logs for part in ("--set", text))],
        lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True),
        installed,
    )
    if as_json:
        print_json({"job_id": job_id, "exit_code": code})
    else:
        console.print(
            f"job {job_id} " + ("was accepted" if code is None else f"ended with exit code {code}"), highlight=False
        )
    raise typer.Exit(code or 0)
