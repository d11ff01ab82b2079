"""The plots of the data card."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from trainer.data.dataset.profile import NUM_TIME_BINS, SPLITS
from trainer.data.dataset.splits import CLOCK_UNITS, time_as_text
from trainer.pages.page import COLOURS, FAINT_INK, Plot, drawing, plot_of

_OF_SPLIT = dict(zip(SPLITS, COLOURS, strict=True))
NUM_TICKS = 5
NUM_POINTS = 300  # of the popularity curve
SMALL = 0.05  # a split with a peak below this share of the highest could not be seen on a linear scale
_THOUSANDS = StrMethodFormatter("{x:,.0f}")
SECONDS_PER_DAY = 86_400


def plots_of(
    values: Mapping[str, Any],
    span: Mapping[str, Any],
    ranked: npt.NDArray[np.int64],
    rates: Mapping[str, Any],
    what: str,
) -> list[Plot]:
    """Return the plots of a data card.

    Args:
        values: the manifest's profile.
        span: first, last, kind and unit of the times.
        ranked: the number of events of each item, the largest first.
        rates: by label, the positive rate by split.
        what: "events" or "impressions".
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
    zone = " (UTC)" if is_clock(span) else ""
    return plot_of(
        figure, f"{what.capitalize()} of each split over time{zone}, in {NUM_TIME_BINS} periods of equal length{scale}."
    )


def is_clock(span: Mapping[str, Any]) -> bool:
    """Return whether the times are dates: timestamps, or integers that count from 1970 in the unit of `span`."""
    return span.get("kind") == "timestamp" or span.get("unit") is not None


def time_text(time: int, span: Mapping[str, Any]) -> str:
    """Return a time of the dataset as people read it: a moment in UTC if times are dates, else the integer."""
    unit = span.get("unit")
    if unit is None:
        return time_as_text(time, span["kind"])
    return time_as_text(time * CLOCK_UNITS["microseconds"] // CLOCK_UNITS[unit], "timestamp")


def _time_ticks(span: Mapping[str, Any]) -> tuple[list[float], list[str]]:
    if span.get("first") is None:
        return [], []
    places = np.linspace(0, NUM_TIME_BINS, NUM_TICKS).tolist()
    first, last = int(span["first"]), int(span["last"])
    times = [first + (last - first) * tick // (NUM_TICKS - 1) for tick in range(NUM_TICKS)]
    texts = [time_text(time, span) for time in times]
    ticks_per_day = SECONDS_PER_DAY * CLOCK_UNITS[span.get("unit") or "microseconds"]
    if is_clock(span) and last - first >= NUM_TICKS * ticks_per_day:
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
    return plot_of(figure, "Number of users by length of the history; each bar ends where the next begins.")


def _popularity(ranked: npt.NDArray[np.int64], what: str) -> Plot:
    figure, axes = plt.subplots(figsize=(5, 3))
    ranks = np.unique(np.geomspace(1, ranked.size, NUM_POINTS).astype(np.int64))
    axes.plot(ranks, ranked[ranks - 1], color=COLOURS[0])
    axes.set(xscale="log", yscale="log", xlabel="rank of the item", ylabel=what)
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    for share in (0.01, 0.1):
        place = np.ceil(share * ranked.size)
        axes.axvline(place, color=FAINT_INK, linewidth=0.8, linestyle="--")
        axes.annotate(f" {share:.0%}", (place, 1.0), xycoords=("data", "axes fraction"), va="top", fontsize=8)
    return plot_of(
        figure,
        f"{what.capitalize()} of every item by popularity; the dashed lines mark the most popular 1 % and 10 % of the items.",
    )


def _plain_numbers(axis: Any) -> None:
    """Write numbers as 1,000 instead of powers of ten, and none between them."""
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
    return plot_of(figure, "Rate of positives (label above 0) of each split.")
