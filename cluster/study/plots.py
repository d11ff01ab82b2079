"""Plot of quality against cost: one panel per axis, with error bars and the Pareto front."""

import io
import json
import math
from dataclasses import dataclass
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from cluster.study.labels import Box, Label, place_labels
from cluster.study.summary import Axis, Row, Summary, axes_of
from trainer.pages import page
from trainer.pages.page import Plot, plot_of

PNG_DOTS_PER_INCH = 150
FAR_POINTS = 16.0  # a label at a larger distance has a line to its point


@dataclass(frozen=True)
class Drawn:
    """The same figure in two formats."""

    plot: Plot
    """The figure as SVG, with its caption."""
    png: bytes
    """The content of a PNG file."""


def draw(summary: Summary, colour_key: str | None) -> Drawn:
    """Draw the plot of a study.

    Args:
        summary: its results.
        colour_key: points with the same value of this setting share a colour; None gives each variant its own.
    """
    with page.drawing():
        names = _key_of_numbers(summary)
        all_axes = axes_of(summary.unit)
        size = (4.6 * len(all_axes), 4.0 + 0.16 * (names.count("\n") + 1))
        figure, panels = plt.subplots(1, len(all_axes), figsize=size, sharey=True, squeeze=False, layout="constrained")
        colours = _colours(summary, colour_key)
        for axes, axis in zip(panels[0], all_axes, strict=True):
            _panel(axes, summary, axis, colours, colour_key)
            axes.spines[["top", "right"]].set_visible(False)
        less = "" if summary.larger_is_better else " (less is better)"
        panels[0][0].set_ylabel(f"validation {summary.metric}{less}")
        figure.draw_without_rendering()  # places of points are known once the layout is
        for axes, axis in zip(panels[0], all_axes, strict=True):
            _write_ranks(axes, summary, axis)
        handles = [plt.Line2D([], [], marker="o", linestyle="", color=colour) for colour in colours.values()]
        figure.legend(handles, list(colours), loc="outside upper center", ncols=min(6, len(colours)), frameon=False)
        figure.supxlabel(names, fontsize=8, ha="left", x=0.02)
        picture = io.BytesIO()
        figure.savefig(
            picture,
            format="png",
            dpi=PNG_DOTS_PER_INCH,
            bbox_inches="tight",
            facecolor="white",
            metadata={"Software": None},
        )
        several = len(summary.seeds) > 1
        bars = "95 % intervals over seeds" if several else "95 % intervals over users"
        caption = (
            f"Validation {summary.metric} against cost, mean over {len(summary.seeds)} seed{'s' * several}; bars: {bars}; "
            "dashed line: the Pareto front, with its points named below; numbers: ranks."
        )
        return Drawn(plot_of(figure, caption), picture.getvalue())


def _key_of_numbers(summary: Summary) -> str:
    """Return the names of the points on the fronts by rank, each with its fronts."""
    front = sorted((row for row in summary.rows if row.fronts), key=lambda row: row.rank or 0)
    short = {axis.name: axis.short for axis in axes_of(summary.unit)}
    return "\n".join(f"{row.rank}  {row.name}   ({', '.join(short[name] for name in row.fronts)})" for row in front)


def _known(summary: Summary, axis: Axis) -> list[tuple[float, Row]]:
    """Return the points that have a rank and a place on an axis, with that place."""
    ranked = (row for row in summary.rows if row.validation.is_defined)
    return [(place, row) for row in ranked if (place := axis.of(row)) is not None]


def _panel(axes: Axes, summary: Summary, axis: Axis, colours: dict[str, Any], colour_key: str | None) -> None:
    """Draw the points, their intervals and the front on one axis."""
    known = _known(summary, axis)
    axes.set_xscale("log")
    for place, row in known:
        mean = row.validation.mean
        low, high = _bounds(row)
        colour = colours[colour_of(row, colour_key)]
        bar = [[max(0.0, mean - low)], [max(0.0, high - mean)]]  # rounded, an interval may just miss its mean
        axes.errorbar([place], [mean], yerr=bar, fmt="o", markersize=6, capsize=2, elinewidth=0.8, color=colour)
    front = sorted((place, row.validation.mean) for place, row in known if axis.name in row.fronts)
    axes.plot(
        [place for place, _ in front],
        [mean for _, mean in front],
        color=page.INK,
        linewidth=1.0,
        linestyle="--",
        zorder=0,
    )
    axes.margins(x=0.12, y=0.1)
    places = sorted({place for place, _ in known})
    if len(places) == 1 and places[0] > 0:  # a logarithmic axis has no zero
        axes.set_xlim(places[0] / 2, places[0] * 2)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 8 * low else MaxNLocator(4))
    axes.xaxis.set_major_formatter(EngFormatter(unit="B" if axis.name == "peak_bytes" else "", sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{axis.label}{' (more is better)' if axis.more_is_better else ''}")


def _write_ranks(axes: Axes, summary: Summary, axis: Axis) -> None:
    """Write the rank of each point next to it, those on the front first and bold; no label covers another or a point."""
    known = sorted(_known(summary, axis), key=lambda one: (axis.name not in one[1].fronts, one[1].rank))
    to_points = 72.0 / axes.figure.dpi
    labels, bars = [], []
    for place, row in known:
        ends = ((place, value) for value in (row.validation.mean, *_bounds(row)))
        (x, y), (_, low), (_, high) = axes.transData.transform(list(ends)) * to_points
        size = _label_size(row, axis)
        labels.append(Label(float(x), float(y), 0.62 * size * len(str(row.rank)), 0.9 * size))
        bars.append(Box(float(x) - 1.0, float(low), float(x) + 1.0, float(high)))
    for (place, row), offset in zip(known, place_labels(labels, bars), strict=True):
        on_front = axis.name in row.fronts
        far = math.hypot(*offset) > FAR_POINTS
        axes.annotate(
            str(row.rank),
            (place, row.validation.mean),
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_label_size(row, axis),
            fontweight="bold" if on_front else "normal",
            color=page.INK if on_front else page.FAINT_INK,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": page.FAINT_INK} if far else None,
        )


def _bounds(row: Row) -> tuple[float, float]:
    """Return the interval of a point: over seeds, or over users with a single seed."""
    mean = row.validation.mean
    return row.validation.over_seeds or row.validation.over_users or (mean, mean)


def _label_size(row: Row, axis: Axis) -> float:
    """Return the font size of a point's label."""
    return 8.0 if axis.name in row.fronts else 6.5


def colour_of(row: Row, key: str | None) -> str:
    """Return what a point's colour shows: its variant, or its value of a setting."""
    if key is None:
        return row.label
    value = row.settings.get(key, "as in base")
    return value if isinstance(value, str) else json.dumps(value)


def _colours(summary: Summary, key: str | None) -> dict[str, Any]:
    """Return the colour of each kind of points."""
    kinds = list(dict.fromkeys(colour_of(row, key) for row in summary.rows))
    if len(kinds) <= len(page.COLOURS):
        return dict(zip(kinds, page.COLOURS, strict=False))
    colour_map = plt.get_cmap("tab20" if len(kinds) <= 20 else "viridis")
    return {kind: colour_map(k / max(1, len(kinds) - 1) if len(kinds) > 20 else k) for k, kind in enumerate(kinds)}
