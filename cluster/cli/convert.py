"""`shoal convert`: a downloaded public data set to event logs."""

from dataclasses import asdict
from typing import Annotated

import typer

from cluster.cli.options import AsJson, console_for, print_json
from trainer.storage.objects.paths import local_path

# Written out, so that --help imports no module that knows the sets. A test compares the two.
PUBLIC_SETS = (
    "movielens-100k, movielens-1m, movielens-10m, movielens-20m, movielens-25m, movielens-32m, amazon-reviews-2014, "
    "amazon-reviews-2018, amazon-reviews-2023, kuairand, kuairand-valtest, taobao, yambda"
)


def convert(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help=f"name of the set: {PUBLIC_SETS} (see docs/public_sets.md)", show_default=False
        ),
    ],
    source: Annotated[str, typer.Argument(metavar="SOURCE_FOLDER", help="folder of the files as downloaded")],
    folder: Annotated[str, typer.Argument(metavar="OUT_FOLDER", help="new folder for the logs")],
    as_json: AsJson = False,
) -> None:
    """Convert a downloaded public data set to event logs."""
    from rich.text import Text

    from trainer.data.public_sets import sets

    console = console_for(as_json)
    with console.status(Text(f"{name}: reading")) as line:
        done = sets.convert(
            name,
            local_path(source, "SOURCE_FOLDER"),
            local_path(folder, "OUT_FOLDER"),
            lambda table, num_rows: line.update(Text(f"{name}: {num_rows:,} rows of {table}")),
        )
    if as_json:
        print_json(asdict(done))
    else:
        tables = ", ".join(f"{num_rows:,} rows of {table}" for table, num_rows in done.rows.items())
        console.print(f"{folder} holds {tables}", highlight=False, soft_wrap=True)
