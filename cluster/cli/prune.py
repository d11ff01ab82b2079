"""`shoal prune`: a model without the heads and blocks that contribute least."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.options import AsJson, Overrides, console_for, in_view, load, print_json
from cluster.doctor.packages import TRAINING, check_installed

if TYPE_CHECKING:
    from rich.console import Console

    from trainer.pruning.results import PruningResults


WIDTH_OF_ALL = 130  # characters of a terminal that shows all columns


def prune(
    run: Annotated[str, typer.Argument(metavar="RUN", help="run folder, or config of a run", show_default=False)],
    heads: Annotated[
        str, typer.Option(metavar="N,...", help="numbers of heads to prune, a model for each", show_default=False)
    ] = "",
    blocks: Annotated[
        str, typer.Option(metavar="N,...", help="numbers of blocks to prune, a model for each", show_default=False)
    ] = "",
    steps: Annotated[int, typer.Option(metavar="N", help="also train each model for N further steps")] = 0,
    metric: Annotated[
        str | None,
        typer.Option(help="validation metric by which contributions are measured (default: that of early stopping)"),
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="name or path of a checkpoint (default: the best one)")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="folder to write (default: pruned/ in the run folder)")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Remove the heads and blocks that contribute least, and compare quality and FLOPs with the whole model."""
    settings = load(str(Path(run) / "config.json") if Path(run).is_dir() else run, overrides)
    check_installed("prune", TRAINING)
    from cluster.driver import driver
    from cluster.driver.prune_stage import PruneOptions
    from trainer.pruning.results import values_of

    options = PruneOptions(_numbers("--heads", heads), _numbers("--blocks", blocks), steps, metric)
    results, page = in_view(as_json, lambda view: driver.run_prune(settings, options, checkpoint, out, view))
    if as_json:
        print_json({**values_of(results), "page": str(page)})
        return
    console = console_for(False)
    _print_for_people(results, console)
    console.print(f"page: {page}", highlight=False, soft_wrap=True)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """Return the numbers of an option, separated by commas. Raises UserError for anything else."""
    from trainer.errors import UserError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"{option} {text}: must be numbers separated by commas, such as 1,2,4") from None


def _print_for_people(results: "PruningResults", console: "Console") -> None:
    """Print the contributions, the table of models, and the notes."""
    from trainer.pruning import outputs

    headings, rows = outputs.table_of(results)
    # A narrow terminal shows the first metric and its difference; the page has all columns.
    hidden = set() if console.width >= WIDTH_OF_ALL else {*outputs.WIDE_HEADINGS, *list(results.rows[0].values)[1:]}
    shown = [place for place, heading in enumerate(headings) if heading not in hidden]
    contributions = outputs.contribution_rows(results)
    _print_table("contributions, the least first", outputs.CONTRIBUTION_HEADINGS, contributions, console)
    of_models = [[row[place] for place in shown] for row in rows]
    title = f"{results.split}, {results.num_users:,} users"
    _print_table(title, [headings[place] for place in shown], of_models, console)
    for note in outputs.notes_of(results):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def _print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], console: "Console") -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        table.add_row(*row)
    console.print(table)
