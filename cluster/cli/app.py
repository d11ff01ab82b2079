"""The command line. Each command imports what it needs when it runs, so that `--help` costs neither torch nor ray.

Exit codes: 0 done; 2 the user must change something (one message, no traceback); 130 and 143 interrupted outside training, by
Ctrl-C and SIGTERM; 1 anything else. With --json, stdout is one JSON object and everything for people goes to stderr.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from cluster import __version__
from cluster.cli.checkpoint import AsJson, checkpoints, print_json
from cluster.cli.study import study
from cluster.errors import Interrupted, RunFailedError, StoppedError
from cluster.ray_cluster.token import send_token_if_present
from trainer.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.config.run_config import Config

# The order of --help: what a new user needs first.
ORDER = (
    *("run", "prepare", "train", "evaluate", "plan", "study", "submit", "status"),
    *("checkpoint", "convert", "synth", "doctor"),
)


class _InOrder(TyperGroup):
    """The commands in the order in which they are explained, wherever they are defined."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(
    cls=_InOrder,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train large attention-based recommenders on event logs, with Ray and TorchRec.",
)
app.add_typer(checkpoints, name="checkpoint")
app.command()(study)

ConfigFile = Annotated[
    str, typer.Argument(metavar="CONFIG", help="TOML file, or the config.json of a run", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a setting, such as train.batch_size=256"),
]


# Choices are written out, so that --help and parsing import none of the modules that know them; a test compares the two.
Split = Literal["validation", "test"]
Device = Literal["cpu", "cuda"]
GpuPreset = Literal["a100-80gb", "h100-80gb", "h200-141gb"]
PUBLIC_SETS = (
    "movielens-100k, movielens-1m, movielens-10m, movielens-20m, movielens-25m, movielens-32m, amazon-reviews-2014, "
    "amazon-reviews-2018, amazon-reviews-2023, kuairand, kuairand-valtest, taobao, yambda"
)


def main() -> None:
    """Entry point of the `shoal` command: errors become one message and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    send_token_if_present()  # before anything imports Ray
    try:
        app(standalone_mode=True)
    except UserError as error:
        _fail(str(error), 2)
    except Interrupted as interruption:
        _fail(interruption.message, interruption.exit_code)
    except Exception as error:  # noqa: BLE001 - the last process boundary: whatever it is becomes a message and an exit code
        from sharding.errors import PlacementError
        from trainer.storage.files import disk_refusal

        if isinstance(error, OSError) and (refusal := disk_refusal(error)) is not None:
            _fail(refusal, 2)
        if isinstance(error, PlacementError):
            _fail(str(error), 2)
        if isinstance(error, StoppedError | RunFailedError):
            _fail(str(error), 1)
        traceback.print_exc()
        _fail(f"{type(error).__name__}: {error}", 1)


def _interrupt(number: int, frame: object) -> None:
    """End the command on Ctrl-C or SIGTERM outside training, which has its own handler."""
    for again in (signal.SIGINT, signal.SIGTERM):  # a second one must not cut the clean-up short with a traceback
        signal.signal(again, _end_at_once)
    raise Interrupted(number)


def _end_at_once(number: int, frame: object) -> None:
    os._exit(128 + number)


def _fail(message: str, code: int) -> None:
    print(f"shoal: {message}", file=sys.stderr)
    sys.exit(code)


def _load(config: str, overrides: list[str] | None) -> "Config":
    # Here, because building all settings takes longer than all else that --help needs.
    from cluster.config.run_config import load_config

    return load_config(config, overrides)


def _console(as_json: bool) -> "Console":
    from cluster.driver.progress import plain_console

    return plain_console(stderr=as_json)


def _in_view(as_json: bool, work: Callable[[Any], Any]) -> Any:
    from cluster.driver.progress import View

    with View(_console(as_json)) as view:
        return work(view)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="print the version and leave")] = False,
) -> None:
    if show:
        print(f"shoal {__version__}")
        raise typer.Exit


@app.command()
def run(config: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Prepare, train, evaluate and report; run it again to go on where it stopped."""
    settings = _load(config, overrides)
    from cluster.driver import driver
    from cluster.driver.progress import results_table

    finished = _in_view(as_json, lambda view: driver.run(settings, view))
    if as_json:
        values = {"results": asdict(finished.results), "training": asdict(finished.outcome)}
        print_json({**values, "run_dir": str(settings.run_dir), "report": str(finished.report)})
    else:
        console = _console(False)
        console.print(results_table(finished.results))
        console.print(f"report: {finished.report}", highlight=False, soft_wrap=True)


@app.command()
def prepare(config: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check the event logs, and turn them into a sequence dataset with its data card."""
    settings = _load(config, overrides)
    from cluster.driver import driver
    from trainer.data.dataset.card import PAGE

    manifest = _in_view(as_json, lambda view: driver.run_prepare(settings, view))
    if as_json:
        print_json(
            {
                "dataset": str(settings.dataset_dir),
                "counts": asdict(manifest.counts),
                "digest": manifest.digest,
                "card": str(settings.dataset_dir / PAGE),
            }
        )


@app.command()
def train(config: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train on the prepared dataset; continues from the newest checkpoint."""
    settings = _load(config, overrides)
    from cluster.driver import driver

    outcome = _in_view(as_json, lambda view: driver.run_train(settings, view))
    if as_json:
        print_json({"run_dir": str(settings.run_dir), **asdict(outcome)})


@app.command()
def evaluate(
    config: ConfigFile,
    split: Annotated[Split, typer.Option(help="which held-out events")] = "test",
    checkpoint: Annotated[str | None, typer.Option(help="name or path of a checkpoint; the best by default")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a checkpoint on held-out events over the full catalogue."""
    settings = _load(config, overrides)
    from cluster.driver import driver
    from cluster.driver.progress import results_table

    results, report = _in_view(as_json, lambda view: driver.run_evaluate(settings, split, checkpoint, view))
    if as_json:
        print_json({**asdict(results), "report": str(report)})
    else:
        console = _console(False)
        console.print(results_table(results))
        console.print(f"report: {report}", highlight=False, soft_wrap=True)


@app.command()
def plan(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="config of a run, or a workload (configs/plans/)", show_default=False),
    ],
    devices: Annotated[int | None, typer.Option(help="how many devices, that is workers")] = None,
    devices_per_host: Annotated[int | None, typer.Option(help="how many of them are on a host")] = None,
    device: Annotated[Device | None, typer.Option(help="what the workers compute on")] = None,
    device_memory: Annotated[str | None, typer.Option(help="memory of a device, such as 80GiB")] = None,
    host_memory: Annotated[str | None, typer.Option(help="memory of a host, such as 2TiB")] = None,
    preset: Annotated[GpuPreset | None, typer.Option(help="memory and speeds of a kind of GPU")] = None,
    rows: Annotated[
        list[str] | None, typer.Option(metavar="TABLE=N", help="rows of a table, where there is no dataset yet")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="KEY=VALUE,...", help="also plan with other settings, such as devices=128, and compare"),
    ] = None,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN_DIR", help="fit the costs to what this run measured; may be given several times"),
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="FOLDER", help="folder for plan.json and plan.html")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """See how tables would lie on given devices and what a step would cost; nothing is run."""
    from cluster.plan import command

    options = {
        "devices": devices,
        "devices_per_host": devices_per_host,
        "device": device,
        "device_memory": device_memory,
        "host_memory": host_memory,
        "preset": preset,
    }
    settings = [f"{name}={value}" for name, value in options.items() if value is not None]
    answer = command.run(config, [*(overrides or []), *settings], rows or [], compare, out, calibrate or [])
    if as_json:
        print_json(command.json_of(answer))
    else:
        command.print_for_people(answer, _console(False))


@app.command()
def submit(
    config: ConfigFile,
    dashboard: Annotated[str, typer.Option(help="address of the cluster's dashboard")] = "http://127.0.0.1:8265",
    wait: Annotated[bool, typer.Option(help="follow the job's log, and end with its exit code")] = True,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run the same as a job on a running Ray cluster."""
    settings = _load(config, overrides)
    from cluster.ray_cluster.submit import submit as submit_job

    console = _console(as_json)
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


@app.command()
def status(
    run_dir: Annotated[str, typer.Argument(metavar="RUN_DIR", help="folder of a run")], as_json: AsJson = False
) -> None:
    """Show the stages of a run, how far training is, its best checkpoint and its reports."""
    from cluster.driver.status import read_status, status_table

    found = read_status(Path(run_dir))
    if as_json:
        print_json(asdict(found))
    else:
        _console(False).print(status_table(found, time.time()))


@app.command()
def synth(
    folder: Annotated[str, typer.Argument(help="new folder for the logs; their truth goes to truth/ in it")],
    users: Annotated[int, typer.Option(help="number of users")] = 4000,
    items: Annotated[int, typer.Option(help="number of items")] = 1000,
    events_per_user: Annotated[float, typer.Option(help="mean number of events, or impressions, of a user")] = 40.0,
    seed: Annotated[int, typer.Option(help="the same seed gives the same bytes")] = 1,
    impressions: Annotated[
        bool, typer.Option("--impressions", help="impressions with known chances of a click, for task = ranking")
    ] = False,
    on_ray: Annotated[bool, typer.Option("--ray", help="spread the files over a local Ray (for large logs)")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="override a setting of the log, such as num_categories=12"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make event logs with planted structure, and write down the truth."""
    from cluster.cli.synth import make
    from cluster.config.run_config import ClusterConfig

    cluster = ClusterConfig() if on_ray else None
    summary = make(folder, users, items, events_per_user, seed, overrides or [], cluster, impressions)
    what = "impressions" if impressions else "events"
    if as_json:
        print_json(summary)
    else:
        _console(False).print(
            f"wrote {summary[f'num_{what}']:,} {what} of {summary['num_users']:,} users to {folder}", highlight=False
        )


@app.command()
def convert(
    name: Annotated[
        str, typer.Argument(help=f"name of the set: {PUBLIC_SETS} (see docs/public_sets.md)", show_default=False)
    ],
    source: Annotated[str, typer.Argument(metavar="SOURCE_FOLDER", help="folder of the files as downloaded")],
    folder: Annotated[str, typer.Argument(metavar="OUT_FOLDER", help="new folder for the logs")],
    as_json: AsJson = False,
) -> None:
    """Turn a public data set, as downloaded, into event logs."""
    from cluster.cli import convert as convert_command

    console = _console(as_json)
    done = convert_command.run(name, source, folder, console)
    if as_json:
        print_json(done)
    else:
        tables = ", ".join(f"{num_rows:,} rows of {table}" for table, num_rows in done["rows"].items())
        console.print(f"{folder} holds {tables}", highlight=False, soft_wrap=True)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check versions, fbgemm, Ray's left-overs, shared memory; say what to do."""
    from cluster.doctor.probe import diagnose

    findings = diagnose()
    problems = [finding for finding in findings if finding.status == "problem"]
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        from rich.table import Table

        table = Table("check", "status", "found", "what to do", show_lines=False)
        for finding in findings:
            table.add_row(finding.name, finding.status, finding.what, finding.remedy)
        _console(False).print(table)
    raise typer.Exit(2 if problems else 0)
