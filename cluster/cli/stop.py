"""`shoal stop`: the end of a run, after a checkpoint."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.options import AsJson, RunFolder, console_for, print_json
from trainer.errors import UserError
from trainer.storage.objects.paths import path_of

POLL_SECONDS = 0.5


def stop(
    run_dir: RunFolder,
    wait: Annotated[bool, typer.Option(help="return once the run has ended")] = True,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="longest wait for the end of the run")] = 600.0,
    dashboard: Annotated[
        str | None, typer.Option(help="dashboard of the cluster, to stop the run's job if it does not answer")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Stop a run wherever it runs: a training saves a checkpoint first. The same command resumes it.

    The request goes through the run folder, which must be shared with the machine of the run; or, with --dashboard, to Ray.
    """
    from cluster.driver import stop_request

    folder = path_of(run_dir)
    console = console_for(as_json)
    if not (folder / "config.json").exists() and dashboard is not None:
        how = _stop_job(folder, dashboard)
    else:
        holder = stop_request.request_stop(folder)
        console.print(f"asked {holder} to stop", highlight=False, soft_wrap=True)
        how = "request in the run folder"
        if not _wait_until(lambda: stop_request.is_answered(folder), stop_request.ANSWER_SECONDS):
            stop_request.withdraw(folder)
            if dashboard is None:
                raise UserError(
                    f"{folder}: {holder} has not answered within {stop_request.ANSWER_SECONDS:g} s; if it is a job, give "
                    "--dashboard, otherwise end that process"
                )
            how = _stop_job(folder, dashboard)
    ended = wait and _wait_until(lambda: "running" not in stop_request.stages_now(folder).values(), timeout)
    if wait and not ended:
        raise UserError(f"{folder}: has not ended within {timeout:g} s; look again with `shoal status {folder}`")
    stages = stop_request.stages_now(folder)
    if as_json:
        print_json({"run_dir": str(folder), "by": how, "ended": bool(ended), "stages": stages})
    else:
        states = ", ".join(f"{name} {state}" for name, state in stages.items())
        console.print(f"stopped: {states}" if ended else "the run is stopping", highlight=False, soft_wrap=True)


def _stop_job(folder: Path, dashboard: str) -> str:
    """Stop the job of a run through Ray. Return its name. Raises UserError if the cluster has none."""
    from cluster.ray_cluster.submit import stop_job_of

    return f"job {stop_job_of(folder, dashboard)}"


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(POLL_SECONDS)
    return True
