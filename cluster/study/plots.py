"""Quality against what it costs: one panel per axis, with error bars and the Pareto front, drawn and named."""

import io
import json
from dataclasses import dataclass
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from cluster.study.summary import AXES, Row, Summary
from trainer import page
from trainer.page import Plot, plot_of

PNG_DOTS_PER_INCH = 150
MOST_NAMES = 12  # of points beside the front that are named in a panel


@dataclass(frozen=True)
class Drawn:
    """The same figure twice."""

    plot: Plot
    png: bytes


def draw(summary: Summary, colour_key: str | None) -> Drawn:
    """colour_key: points with the same value of this setting share a colour; none gives each variant its own."""
    with page.drawing():
        figure, panels = plt.subplots(1, len(AXES), figsize=(5.2 * len(AXES), 4.6), sharey=True, squeeze=False)
        colours = _colours(summary, colour_key)
        for axes, axis in zip(panels[0], AXES, strict=True):
            _panel(axes, summary, axis, colours, colour_key)
        panels[0][0].set_ylabel(f"validation {summary.metric}")
        handles = [plt.Line2D([], [], marker="o", linestyle="", color=colour) for colour in colours.values()]
        columns = min(6, len(colours))
        below = -0.04 - 0.05 * (len(colours) // columns)
        figure.legend(
            handles,
            list(colours),
            loc="lower center",
            ncols=columns,
            frameon=False,
            bbox_to_anchor=(0.5, below),
        )
        figure.tight_layout()
        picture = io.BytesIO()
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(picture, format="png", dpi=PNG_DOTS_PER_INCH, bbox_inches="tight", metadata={"Software": None})
        several = len(summary.seeds) > 1
        bars = "95 % intervals over seeds" if several else "95 % intervals over users"
        caption = (
            f"Validation {summary.metric} against cost, mean over {len(summary.seeds)} seed{'s' * several}; bars: {bars}; "
            "line: the Pareto front."
        )
        return Drawn(plot_of(figure, caption), picture.getvalue())


def _panel(axes: Axes, summary: Summary, axis: str, colours: dict[str, Any], colour_key: str | None) -> None:
    more_is_better, label = AXES[axis]
    known = [(place, row) for row in summary.rows if (place := row.on_axis(axis)) is not None]
    for place, row in known:
        mean = row.validation.mean
        low, high = row.validation.over_seeds or row.validation.over_users or (mean, mean)
        colour = colours[colour_of(row, colour_key)]
        bar = [[mean - low], [high - mean]]
        axes.errorbar([place], [mean], yerr=bar, fmt="o", markersize=6, capsize=2, elinewidth=0.8, color=colour)
    front = sorted((place, row.validation.mean) for place, row in known if axis in row.fronts)
    places, means = [place for place, _ in front], [mean for _, mean in front]
    axes.plot(places, means, color="#495057", linewidth=1.0, linestyle="--", zorder=0)
    for place, row in known:
        on_front = axis in row.fronts
        if on_front or len(known) <= MOST_NAMES:
            axes.annotate(
                row.name,
                (place, row.validation.mean),
                xytext=(5, 5),
                textcoords="offset points",
                fontsize=7,
                fontweight="bold" if on_front else "normal",
                color="#1b2a33" if on_front else "#868e96",
            )
    axes.set_xscale("log")
    axes.set_xlabel(f"{label}{' (more is better)' if more_is_better else ''}")
    axes.margins(x=0.18, y=0.12)


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
