"""Files of a pruning: pruning.json, table.md, plot.svg and pruning.html."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.comparison.verdicts import p_text, signed_interval
from trainer.pages.text import figure_text
from trainer.pruning.results import PruningResults, Row, values_of
from trainer.storage.files import write_json_atomically, write_text_atomically

VALUES, TABLE, PLOT, PAGE = "pruning.json", "table.md", "plot.svg", "pruning.html"
DENSE_WEIGHTS = "dense weights"
WIDE_HEADINGS = (DENSE_WEIGHTS,)  # that a narrow terminal leaves out, apart from further metrics
CONTRIBUTION_HEADINGS = ("part", "metric without it", "contribution")


def write(results: PruningResults, folder: Path) -> Path:
    """Write all files into a folder, and return the path of the page."""
    from trainer.pages import page  # loads matplotlib
    from trainer.pruning.plots import quality_plot

    write_json_atomically(folder / VALUES, values_of(results))
    headings, rows = table_of(results)
    write_text_atomically(folder / TABLE, markdown(headings, rows))
    with page.drawing():
        plot = quality_plot(results)
    write_text_atomically(folder / PLOT, str(plot.svg).replace("<svg", '<svg style="background:#fff"', 1))
    text = page.render(
        Path(__file__).parent,
        "pruning.html.j2",
        title=f"Pruning of {Path(results.run).name}",
        header=_header(results),
        plot=plot,
        headings=headings,
        rows=rows,
        verdicts=[(row.title, row.verdict) for row in results.rows if row.verdict],
        contribution_headings=CONTRIBUTION_HEADINGS,
        contributions=contribution_rows(results),
        notes=notes_of(results),
    )
    write_text_atomically(folder / PAGE, text)
    return folder / PAGE


def table_of(results: PruningResults) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of the table of models."""
    first = results.rows[0]
    metrics = list(first.values)
    headings = ["model", "heads by block", f"forward FLOPs/{results.unit}", DENSE_WEIGHTS, metrics[0]]
    headings += ["difference", "95 % interval", "p", *metrics[1:]]
    return headings, [_cells(row, first, metrics) for row in results.rows]


def _cells(row: Row, first: Row, metrics: Sequence[str]) -> list[str]:
    flops = f"{row.cost.forward_flops:,.0f} ({row.cost.forward_flops / first.cost.forward_flops:.0%})"
    cells = [row.title, " ".join(map(str, row.heads_by_block)), flops, f"{row.cost.dense_parameters:,}"]
    cells.append(figure_text(row.values[metrics[0]]))
    if row.differences:
        one = row.differences[0]
        p = p_text(one.p_corrected).removeprefix("p = ").removeprefix("p ")
        cells += [f"{one.difference:+.4f}", signed_interval(one.interval), p]
    else:
        cells += ["", "", ""]
    return [*cells, *(figure_text(row.values[metric]) for metric in metrics[1:])]


def contribution_rows(results: PruningResults) -> list[list[str]]:
    """Return the rows of the table of contributions, the least first."""
    ordered = sorted(results.measured.contributions, key=lambda one: (one.unit.kind, one.contribution))
    return [[one.unit.name, figure_text(one.value), f"{one.contribution:+.5f}"] for one in ordered]


def notes_of(results: PruningResults) -> list[str]:
    """Return what limits the results, in sentences."""
    notes = [
        f"Parts were chosen by the validation metric {results.measured.metric}, and models are compared on {results.split}.",
        "A contribution is measured with all other parts present. Contributions do not add up.",
        "Each model is compared with the unpruned one on its own, with the same users.",
        "FLOPs are those of the encoder and its inputs without the scores of the catalogue, which pruning does not change.",
    ]
    if any(row.steps for row in results.rows):
        notes.append(
            "The unpruned model was trained for the same number of further steps, so that the effect of these steps is seen apart "
            "from that of pruning."
        )
    if results.split == "validation":
        notes.append(
            "The dataset has no test events: the same users chose the parts, so that the results are too good."
        )
    return notes


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _header(results: PruningResults) -> list[tuple[str, Any]]:
    return [
        ("Unpruned model", f"{results.run}, {results.checkpoint}"),
        ("Compared on", f"{results.split}, {results.num_users:,} users"),
        ("Validation metric", f"{results.measured.metric} = {figure_text(results.measured.whole)}"),
    ]
