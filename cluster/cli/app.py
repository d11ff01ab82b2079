"""Assembles the command line from its commands, one file each.

Each command imports what it needs when it runs, so that `--help` loads neither torch nor ray.

Exit codes: 0 done; 2 the user must change something (one message, no traceback); 130 and 143 interrupted outside training, by
Ctrl-C and SIGTERM; 1 anything else. With --json, stdout is one JSON object and everything for people goes to stderr.
"""

import os
import signal
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cluster import __version__
from cluster.cli.checkpoint import checkpoints
from cluster.cli.compare import compare
from cluster.cli.convert import convert
from cluster.cli.doctor import doctor
from cluster.cli.evaluate import evaluate
from cluster.cli.explain import explain
from cluster.cli.export import export
from cluster.cli.logs import logs
from cluster.cli.plan import plan
from cluster.cli.prepare import prepare
from cluster.cli.prune import prune
from cluster.cli.recommend import recommend
from cluster.cli.run import run
from cluster.cli.status import status
from cluster.cli.stop import stop
from cluster.cli.study import study
from cluster.cli.submit import submit
from cluster.cli.synth import synth
from cluster.cli.train import train
from cluster.errors import Interrupted, RunFailedError, StoppedError, as_user_error
from cluster.ray_cluster.token import send_token_if_present
from trainer.errors import UserError

# The order of --help: what a new user needs first.
ORDER = (
    *(
        "run",
        "prepare",
        "train",
        "evaluate",
        "compare",
        "recommend",
        "explain",
        "prune",
        "export",
        "plan",
        "study",
        "submit",
    ),
    *("status", "logs", "stop", "checkpoint", "convert", "synth", "doctor"),
)


class _InOrder(TyperGroup):
    """The commands in the order of --help. Typer lists groups of commands first."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands."""
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(
    cls=_InOrder,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train large attention-based recommenders on event logs, with Ray and TorchRec.",
)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    if show:  # no docstring: it would take the place of the help text
        print(f"shoal {__version__}")
        raise typer.Exit


for _command in (
    run,
    prepare,
    train,
    evaluate,
    compare,
    recommend,
    explain,
    prune,
    export,
    plan,
    study,
    status,
    logs,
    stop,
    convert,
    synth,
    doctor,
):
    app.command()(_command)
# What submit does not know are options of the command that it submits, which are checked by that command's own parser.
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(submit)
app.add_typer(checkpoints, name="checkpoint")


def main() -> None:
    """Run the `shoal` command. An error becomes one message and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    send_token_if_present()  # before anything imports Ray
    try:
        app(standalone_mode=True)
    except UserError as error:
        _fail(str(error), 2)
    except Interrupted as interruption:
        _fail(interruption.message, interruption.exit_code)
    except Exception as error:  # noqa: BLE001 - the last process boundary: every error becomes a message and an exit code
        if (user_error := as_user_error(error)) is not None:
            _fail(str(user_error), 2)
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
