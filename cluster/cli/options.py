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
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout, everything else on stderr")]
RunFolder = Annotated[str, typer.Argument(metavar="RUN_DIR", help="run folder")]


def load(config: str, overrides: list[str] | None) -> "Config":
    """Return the checked config of a file, with overrides."""
    # Building all settings takes longer than everything else that --help needs.
    from cluster.config.run_config import load_config

    return load_config(config, overrides)


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
