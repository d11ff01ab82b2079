"""Quality against what it costs: one panel per axis, with error bars and the Pareto front, drawn and named."""

import io
import json
from dataclasses import dataclass
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from cluster.study.summary import Axis, Row, Summary, axes_of
from trainer.pages import page
from trainer.pages.page import Plot, plot_of

PNG_DOTS_PER_INCH = 150


@dataclass(frozen=True)
class Drawn:
    """The same figure twice."""

    plot: Plot
    png: bytes


def draw(summary: Summary, colour_key: str | None) -> Drawn:
    """colour_key: points with the same value of this setting share a colour; none gives each variant its own."""
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
        handles = [plt.Line2D([], [], marker="o", linestyle="", color=colour) for colour in colours.values()]
        figure.legend(handles, list(colours), loc="outside upper center", ncols=min(6, len(colours)), frameon=False)
        figure.supxlabel(names, fontsize=8, ha="left", x=0.02)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=PNG_DOTS_PER_INCH, bbox_inches="tight", metadata={"Software": None})
        several = len(summary.seeds) > 1
        bars = "95 % intervals over seeds" if several else "95 % intervals over users"
        caption = (
            f"Validation {summary.metric} against cost, mean over {len(summary.seeds)} seed{'s' * several}; bars: {bars}; "
            "line: the Pareto front, whose points are named; numbers: ranks."
        )
        return Drawn(plot_of(figure, caption), picture.getvalue())


def _key_of_numbers(summary: Summary) -> str:
    """Which points the numbers on the fronts are, and on which front each is."""
    front = sorted((row for row in summary.rows if row.fronts), key=lambda row: row.rank or 0)
    short = {axis.name: axis.short for axis in axes_of(summary.unit)}
    return "\n".join(f"{row.rank}  {row.name}   ({', '.join(short[name] for name in row.fronts)})" for row in front)


def _panel(axes: Axes, summary: Summary, axis: Axis, colours: dict[str, Any], colour_key: str | None) -> None:
    ranked = [row for row in summary.rows if row.validation.is_defined]
    known = [(place, row) for row in ranked if (place := axis.of(row)) is not None]
    axes.set_xscale("log")
    for place, row in known:
        mean = row.validation.mean
        low, high = row.validation.over_seeds or row.validation.over_users or (mean, mean)
        colour = colours[colour_of(row, colour_key)]
        bar = [[max(0.0, mean - low)], [max(0.0, high - mean)]]  # rounded, an interval may miss its mean by a hair
        axes.errorbar([place], [mean], yerr=bar, fmt="o", markersize=6, capsize=2, elinewidth=0.8, color=colour)
    front = sorted((place, row.validation.mean) for place, row in known if axis.name in row.fronts)
    axes.plot(
        [place for place, _ in front],
        [mean for _, mean in front],
        color="#495057",
        linewidth=1.0,
        linestyle="--",
        zorder=0,
    )
    for place, row in known:
        on_front = axis.name in row.fronts
        axes.annotate(
            str(row.rank),
            (place, row.validation.mean),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=8 if on_front else 6.5,
            fontweight="bold" if on_front else "normal",
            color="#1b2a33" if on_front else "#868e96",
        )
    axes.margins(x=0.12, y=0.1)
    places = sorted({place for place, _ in known})
    if len(places) == 1:
        axes.set_xlim(places[0] / 2, places[0] * 2)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 8 * low else MaxNLocator(4))
    axes.xaxis.set_major_formatter(EngFormatter(unit="B" if axis.name == "peak_bytes" else "", sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{axis.label}{' (more is better)' if axis.more_is_better else ''}")


def colour_of(row: Row, key: str | None) -> str:
    """What a point's colour stands for."""
    if key is None:
        return row.label
    value = row.settings.get(key, "as in base")
    return value if isinstance(value, str) else json.dumps(value)


def _colours(summary: Summary, key: str | None) -> dict[str, Any]:
    kinds = list(dict.fromkeys(colour_of(row, key) for row in summary.rows))
    if len(kinds) <= len(page.COLOURS):
        return dict(zip(kinds, page.COLOURS, strict=False))
    colour_map = plt.get_cmap("tab20" if len(kinds) <= 20 else "viridis")
    return {kind: colour_map(k / max(1, len(kinds) - 1) if len(kinds) > 20 else k) for k, kind in enumerate(kinds)}
