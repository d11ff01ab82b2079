"""Arguments of a command that `shoal submit` submits: parsed here as the command itself will, with absolute paths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from trainer.errors import UserError

# The first argument of commands that can be submitted: the config of a run.
_CONFIG = ("config", "run")
# Metavars of options with paths. Other words that such an option takes, as "all", stay as they are.
_PATHS = ("PATH", "FILE", "FOLDER", "FILE|all")
_PATH_OPTIONS = ("dataset",)  # with a metavar of typer's own
_WORDS = ("all",)


@dataclass(frozen=True)
class JobArguments:
    """The arguments of a submitted command."""

    # Words of the command line after the config.
    words: list[str]
    # Paths of logs other than those of the config. With them, --set logs.NAME=VALUE describes these logs.
    other_logs: list[str]


def job_arguments(command: str, words: Sequence[str]) -> JobArguments:
    """Parse the arguments of a command.

    Args:
        command: name of the command.
        words: its arguments after the config.

    Raises:
        UserError: the command does not exist, cannot be submitted, or has no such option.
    """
    parser = _parser_of(command)
    try:
        context = parser.make_context(command, ["config.json", *words])
    except Exception as error:
        message = getattr(error, "format_message", None)  # a usage error of click
        if message is None:
            raise
        owners = _commands_with(words)
        hint = f"; these commands have it: {', '.join(owners)} (--command)" if owners else ""
        raise UserError(f"submit --command {command}: {message().rstrip('.')}{hint}") from None
    rebuilt = [word for parameter in parser.params for word in _words_of(parameter, context)]
    logs = [path for name in ("logs", "history") for path in context.params.get(name) or []]
    return JobArguments(rebuilt, list(logs))


def _parsers() -> dict[str, Any]:
    """Return the commands that take the config of a run, by name."""
    from cluster.cli.app import app  # which imports `shoal submit`, and so this module's caller

    group: Any = typer.main.get_command(app)
    return {
        name: parser
        for name, parser in group.commands.items()
        if name not in ("submit", "plan")
        and (parser.params or [None])[0] is not None
        and _takes_config(parser.params[0])
    }


def _takes_config(parameter: Any) -> bool:
    return parameter.param_type_name == "argument" and parameter.name in _CONFIG


def _parser_of(command: str) -> Any:
    parsers = _parsers()
    if command not in parsers:
        raise UserError(f"--command {command}: cannot be submitted; choose one of {', '.join(parsers)}")
    return parsers[command]


def _commands_with(words: Sequence[str]) -> list[str]:
    """Return the commands that have all the options among these words."""
    asked = {word.partition("=")[0] for word in words if word.startswith("--")}
    options = {name: {opt for p in parser.params for opt in p.opts} for name, parser in _parsers().items()}
    return [name for name, known in options.items() if asked and asked <= known]


def _words_of(parameter: Any, context: Any) -> Iterator[str]:
    """Yield an option as words of a command line, if it was given."""
    given = context.get_parameter_source(parameter.name)
    if parameter.param_type_name == "argument" or given is None or given.name != "COMMANDLINE":
        return
    value = context.params[parameter.name]
    if parameter.is_flag:
        yield parameter.opts[0] if value else parameter.secondary_opts[0]
        return
    for one in value if parameter.multiple else [value]:
        yield from (parameter.opts[0], _absolute(parameter, str(one)))


def _absolute(parameter: Any, value: str) -> str:
    """Return a value with an absolute path, because the job runs in a folder of its own."""
    is_path = parameter.metavar in _PATHS or parameter.name in _PATH_OPTIONS
    # The name of a checkpoint is no path, unless it has a slash.
    is_path = is_path or (parameter.name in ("checkpoint", "out") and "/" in value) or parameter.name == "out"
    if not is_path or "://" in value or value in _WORDS:
        return value
    return str(Path(value).expanduser().absolute())
