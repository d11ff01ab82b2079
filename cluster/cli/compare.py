"""`shoal compare`: trained models on the same users."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.cli.options import AsJson, console_for, print_json
from trainer.storage.objects.paths import local_path

if TYPE_CHECKING:
    from rich.console import Console

    from trainer.comparison.comparison import Comparison, Pair

# Written out, so that --help imports no module that knows the splits. A test compares the two.
Split = Literal["validation", "test"]
_WIDTH_OF_ALL = 100  # a narrower terminal shows no relative differences in the table


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="folders of runs or evaluations, the reference first; NAME=FOLDER chooses a name, and the same name for several "
            "runs makes them seeds of one model",
            show_default=False,
        ),
    ],
    split: Annotated[Split, typer.Option(help="split to compare on; it must have been evaluated")] = "test",
    checkpoint: Annotated[
        str | None, typer.Option(help="checkpoint that was evaluated by name (default: the best one)")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="metric to compare, such as ndcg@10; may be repeated (default: all)")
    ] = None,
    common_users: Annotated[
        bool,
        typer.Option("--common-users", help="leave out users that not all evaluations have, instead of refusing them"),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="folder for compare.html and compare.json (default: next to the second run)"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare trained models on the same users: paired differences with intervals, tests and a verdict."""
    from trainer.comparison import outputs
    from trainer.comparison.comparison import compare as compared

    comparison = compared(runs, split, checkpoint, metrics=metric, common_users=common_users)
    page = outputs.write(comparison, local_path(out, "--out") if out else outputs.default_folder(comparison))
    if as_json:
        print_json({**outputs.values_of(comparison), "page": str(page)})
        return
    console = console_for(False)
    _print_for_people(comparison, console)
    console.print(f"page: {page}", highlight=False, soft_wrap=True)


def _print_for_people(comparison: "Comparison", console: "Console") -> None:
    """Print a table and a verdict per pair, and the notes."""
    from trainer.comparison import verdicts

    for pair in comparison.pairs:
        _print_table(pair, comparison, console)
        console.print(f"verdict: {verdicts.summary(pair)}", highlight=False, soft_wrap=True)
        for one in pair.differences:
            if one.metric in comparison.headlines:
                text = verdicts.statement(one, pair.reference.title, pair.other.title)
                console.print(f"  {text}", highlight=False, soft_wrap=True)
        if (on_slices := verdicts.slice_verdict(pair)) != "":
            console.print(f"  {on_slices}", highlight=False, soft_wrap=True)
        console.print()
    reasons: dict[str, list[str]] = {}
    for left in comparison.unpaired:
        reasons.setdefault(left.reason, []).append(left.metric)
    for reason, metrics in reasons.items():
        console.print(f"not compared: {', '.join(metrics)}: {reason}", highlight=False, soft_wrap=True)
    for note in verdicts.notes(comparison):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def _print_table(pair: "Pair", comparison: "Comparison", console: "Console") -> None:
    """Print the metrics of a pair."""
    from rich import box
    from rich.table import Table

    from trainer.comparison import verdicts
    from trainer.pages.text import figure_text

    title = f"{comparison.split}, {comparison.num_users:,} users: {pair.other.title} minus {pair.reference.title}"
    with_relative = console.width >= _WIDTH_OF_ALL
    padding = (0, int(with_relative), 0, 0)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=padding)
    table.add_column("metric", no_wrap=True)
    for heading in ("reference", "other", "difference", "95 % interval", *(["relative"] if with_relative else []), "p"):
        is_interval = heading == "95 % interval"
        table.add_column(heading, justify="right", no_wrap=not is_interval, min_width=7 if is_interval else None)
    table.add_column("verdict", no_wrap=True)
    for one in pair.differences:
        table.add_row(
            one.metric,
            figure_text(one.reference),
            figure_text(one.value),
            f"{one.difference:+.4f}",
            verdicts.signed_interval(one.interval),
            *([verdicts.percent_text(one.relative)] if with_relative else []),
            verdicts.p_text(one.p_corrected).removeprefix("p = ").removeprefix("p "),
            one.outcome,
        )
    console.print(table)
