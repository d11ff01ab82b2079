"""`shoal convert`: a downloaded public set to event logs, with what a person sees meanwhile."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from trainer.data.public_sets.sets import convert


def run(name: str, source: str, folder: str, console: Console) -> dict[str, Any]:
    """Convert, and return conversion.json as a dictionary. Raises UserError as trainer.data.public_sets.sets does."""
    with console.status(Text(f"{name}: reading")) as status:
        done = convert(
            name,
            Path(source),
            Path(folder),
            lambda table, num_rows: status.update(Text(f"{name}: {num_rows:,} rows of {table}")),
        )
    return asdict(done)
