"""The plots of the data card."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from trainer.data.dataset.profile import NUM_TIME_BINS, SPLITS
from trainer.data.dataset.splits import time_as_text
from trainer.pages.page import COLOURS, Plot, drawing, plot_of

_OF_SPLIT = dict(zip(SPLITS, COLOURS, strict=True))
NUM_TICKS = 5
NUM_POINTS = 300  # of the popularity curve
SMALL = 0.05  # a split whose peak is below this share of the highest could not be seen on a linear scale
_THOUSANDS = StrMethodFormatter("{x:,.0f}")
DAY_MICROSECONDS = 86_400_000_000


def plots_of(
    values: Mapping[str, Any],
    span: Mapping[str, Any],
    ranked: npt.NDArray[np.int64],
    rates: Mapping[str, Any],
    what: str,
) -> list[Plot]:
    """values: the manifest's profile; span: first, last and kind of the times; ranked: events of items, the most first.

    rates: of each label, the positive rate by split; what: "events" or "impressions".
    """
    with drawing():
        plots = [_over_time(values["events_over_time"], span, what), _lengths(values["history_lengths"])]
        if ranked.size:
            plots.append(_popularity(ranked, what))
        if rates:
            plots.append(_rates(rates))
    return plots


def _over_time(counts: Mapping[str, list[int]], span: Mapping[str, Any], what: str) -> Plot:
    figure, axes = plt.subplots(figsize=(8, 2.8))
    peaks = [max(counts[split]) for split in SPLITS if any(counts[split])]
    for split in SPLITS:
        if any(counts[split]):
            colour = _OF_SPLIT[split]
            axes.stairs(counts[split], fill=True, alpha=0.15, color=colour)
            axes.stairs(counts[split], label=split, color=colour, linewidth=1.2)
    logarithmic = bool(peaks) and min(peaks) < SMALL * max(peaks)
    if logarithmic:
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis)
    else:
        axes.yaxis.set_major_formatter(_THOUSANDS)
    axes.set_xticks(*_time_ticks(span))
    axes.set(xlim=(0, NUM_TIME_BINS), ylabel=what)
    if peaks:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    scale = ", on a logarithmic scale" if logarithmic else ""
    zone = " (UTC)" if span.get("kind") == "timestamp" else ""
    return plot_of(
        figure, f"{what.capitalize()} of each split over time{zone}, in {NUM_TIME_BINS} equal stretches{scale}."
    )


def _time_ticks(span: Mapping[str, Any]) -> tuple[list[float], list[str]]:
    if span.get("first") is None:
        return [], []
    places = np.linspace(0, NUM_TIME_BINS, NUM_TICKS).tolist()
    first, last = int(span["first"]), int(span["last"])
    times = [first + (last - first) * tick // (NUM_TICKS - 1) for tick in range(NUM_TICKS)]
    texts = [time_as_text(time, span["kind"]) for time in times]
    if span["kind"] == "timestamp" and last - first >= NUM_TICKS * DAY_MICROSECONDS:
        texts = [text.partition(" ")[0] for text in texts]
    return places, texts


def _lengths(users: list[int]) -> Plot:
    figure, axes = plt.subplots(figsize=(5, 3))
    held = [place for place, number in enumerate(users) if number] or [0]
    places = range(held[0], held[-1] + 1)
    axes.bar(places, users[held[0] : held[-1] + 1], color=COLOURS[0], width=0.85)
    labels = ["0" if place == 0 else str(2 ** (place - 1)) for place in places]
    axes.set_xticks(places, labels, fontsize=8, rotation=45 if len(places) > 12 else 0)
    axes.yaxis.set_major_formatter(_THOUSANDS)
    axes.set(xlabel="events in the history, from", ylabel="users")
    return plot_of(figure, "Lengths of histories; each bar reaches to where the next begins.")


def _popularity(ranked: npt.NDArray[np.int64], what: str) -> Plot:
    figure, axes = plt.subplots(figsize=(5, 3))
    ranks = np.unique(np.geomspace(1, ranked.size, NUM_POINTS).astype(np.int64))
    axes.plot(ranks, ranked[ranks - 1], color=COLOURS[0])
    axes.set(xscale="log", yscale="log", xlabel="rank of the item", ylabel=what)
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    for share in (0.01, 0.1):
        place = np.ceil(share * ranked.size)
        axes.axvline(place, color="#868e96", linewidth=0.8, linestyle="--")
        axes.annotate(f" {share:.0%}", (place, 1.0), xycoords=("data", "axes fraction"), va="top", fontsize=8)
    return plot_of(
        figure, f"Popularity: {what} of every item; the dashed lines are the first 1 % and 10 % of the items."
    )


def _plain_numbers(axis: Any) -> None:
    """1,000 in place of a power of ten, and no numbers between these."""
    axis.set_major_formatter(_THOUSANDS)
    axis.set_minor_formatter(NullFormatter())


def _rates(rates: Mapping[str, Mapping[str, float | None]]) -> Plot:
    figure, axes = plt.subplots(figsize=(8, 2.6))
    width = 0.8 / len(SPLITS)
    for number, split in enumerate(SPLITS):
        heights = [rates[label][split] or 0.0 for label in rates]
        places = np.arange(len(rates)) + (number - 1) * width
        axes.bar(places, heights, width * 0.9, label=split, color=_OF_SPLIT[split])
    # Names of columns are no formulas, whatever dollar signs they have.
    axes.set_xticks(range(len(rates)), list(rates), fontsize=8, rotation=30 if len(rates) > 6 else 0, parse_math=False)
    axes.set_ylabel("positive rate")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return plot_of(figure, "Share of impressions whose label is above 0, by split.")
