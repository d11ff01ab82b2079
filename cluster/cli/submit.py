"""`shoal submit`: a run as a job on a Ray cluster."""

from typing import Annotated

import typer

from cluster.cli.options import AsJson, ConfigFile, Overrides, console_for, load, print_json
from cluster.doctor.packages import RAY, check_installed


def submit(
    config: ConfigFile,
    dashboard: Annotated[str, typer.Option(help="address of the cluster's dashboard")] = "http://127.0.0.1:8265",
    wait: Annotated[bool, typer.Option(help="follow the log of the job and exit with its exit code")] = True,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Submit `shoal run` as a job to a running Ray cluster."""
    settings = load(config, overrides)
    check_installed("submit", RAY)
    from cluster.ray_cluster.submit import submit as submit_job

    console = console_for(as_json)
    job_id, code = submit_job(
        settings,
        dashboard,
        lambda text: console.print(text, end="", highlight=False, markup=False, soft_wrap=True),
        wait,
    )
    if as_json:
        print_json({"job_id": job_id, "exit_code": code})
    else:
        console.print(
            f"job {job_id} " + ("was accepted" if code is None else f"ended with exit code {code}"), highlight=False
        )
    raise typer.Exit(code or 0)
