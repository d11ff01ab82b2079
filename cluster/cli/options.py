"""Arguments, options and output that several commands share. Imports what is large only inside functions."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.config.run_config import Config
    from cluster.driver.progress import View

ConfigFile = Annotated[
    str, typer.Argument(metavar="CONFIG", help="TOML file, or the config.json of a run", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a setting, such as train.batch_size=256"),
]
Logs = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH", help="file, folder or glob of later logs to evaluate on; may be repeated"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout, everything else on stderr")]
RunFolder = Annotated[str, typer.Argument(metavar="RUN_DIR", help="run folder")]


def load(config: str, overrides: list[str] | None) -> "Config":
    """Return the checked config of a file, with overrides."""
    # Building all settings takes longer than everything else that --help needs.
    from cluster.config.run_config import load_config

    return load_config(config, overrides)


def load_with_logs(config: str, overrides: list[str] | None, logs: list[str] | None) -> "tuple[Config, list[str]]":
    """Return the checked config of a run, and the overrides that describe other logs.

    Args:
        config: the file.
        overrides: all overrides. Those of `logs` belong to the other logs, if there are any.
        logs: paths of other logs.
    """
    of_logs = [text for text in overrides or [] if logs and text.strip().startswith("logs.")]
    return load(config, [text for text in overrides or [] if text not in of_logs]), of_logs


def console_for(as_json: bool) -> "Console":
    """Return the console for people: stderr if stdout is for a program."""
    from cluster.driver.progress import plain_console

    return plain_console(stderr=as_json)


def in_view(as_json: bool, work: "Callable[[View], Any]") -> Any:
    """Return what `work` returns, while it shows its progress."""
    from cluster.driver.progress import View

    with View(console_for(as_json)) as view:
        return work(view)


def print_json(value: dict[str, Any]) -> None:
    """Print the answer of a command to a program."""
    print(json.dumps(value, default=str))
