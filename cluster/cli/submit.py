"""`shoal submit`: a run, or an evaluation, as a job on a Ray cluster."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.cli.evaluate import Checkpoint, Dataset, Split
from cluster.cli.options import AsJson, ConfigFile, Logs, Overrides, console_for, load_with_logs, print_json
from cluster.doctor.packages import RAY, check_installed
from trainer.errors import UserError

Command = Literal["run", "prepare", "train", "evaluate"]


def submit(
    config: ConfigFile,
    dashboard: Annotated[str, typer.Option(help="address of the cluster's dashboard")] = "http://127.0.0.1:8265",
    wait: Annotated[bool, typer.Option(help="follow the log of the job and exit with its exit code")] = True,
    command: Annotated[Command, typer.Option(help="command that the job runs")] = "run",
    split: Annotated[Split | None, typer.Option(help="evaluate: as for `shoal evaluate`")] = None,
    checkpoint: Checkpoint = None,
    logs: Logs = None,
    dataset: Dataset = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Submit `shoal run`, or another command, as a job to a running Ray cluster."""
    options = _options_of_evaluate(command, split, checkpoint, logs, dataset)
    settings, of_logs = load_with_logs(config, overrides, logs)
    check_installed("submit", RAY)
    from cluster.ray_cluster.submit import submit as submit_job

    console = console_for(as_json)
    job_id, code = submit_job(
        settings,
        dashboard,
        lambda text: console.print(text, end="", highlight=False, markup=False, soft_wrap=True),
        wait,
        [command, *options, *(part for text in of_logs for part in ("--set", text))],
    )
    if as_json:
        print_json({"job_id": job_id, "exit_code": code})
    else:
        console.print(
            f"job {job_id} " + ("was accepted" if code is None else f"ended with exit code {code}"), highlight=False
        )
    raise typer.Exit(code or 0)


def _options_of_evaluate(
    command: Command, split: Split | None, checkpoint: str | None, logs: list[str] | None, dataset: str | None
) -> list[str]:
    """Return the options of `shoal evaluate`, with absolute paths. Raises UserError if another command is submitted with them."""
    options = [
        ("--split", split),
        ("--checkpoint", checkpoint and _absolute(checkpoint)),
        ("--dataset", dataset and str(Path(dataset).absolute())),
    ]
    options += [("--logs", path if "://" in path else str(Path(path).absolute())) for path in logs or []]
    given = [(name, value) for name, value in options if value is not None]
    if given and command != "evaluate":
        raise UserError(f"{given[0][0]}: is an option of the command evaluate; add --command evaluate")
    return [part for pair in given for part in pair]


def _absolute(path: str) -> str:
    """Return a path as an absolute one; a name without a slash, as of a checkpoint, stays."""
    return str(Path(path).absolute()) if "/" in path else path
