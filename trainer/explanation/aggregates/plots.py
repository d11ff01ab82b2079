"""Plots of the aggregates of attention, in the style of the pages."""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt

from trainer.explanation.aggregates.groups import Grouping
from trainer.explanation.aggregates.sums import AttentionSums, group_shares, map_text, means
from trainer.pages import page
from trainer.pages.page import Plot, plot_of

MOST_GROUPS = 12  # of a grouping without an order: those with the most events
MOST_LINES = 6  # maps that a plot shows one by one; with more, their range is shown
_STYLES = ("-", "--", "-.", ":")


def effective_plot(sums: AttentionSums) -> Plot:
    """Draw the effective number of events of each map, with the middle range of histories, and their mean length."""
    rows = means(sums)
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.3 * len(rows)))
    places = np.arange(len(rows))
    values = np.asarray([row.effective for row in rows])
    spread = np.asarray([row.effective_deviation for row in rows])
    lengths = np.asarray([row.length for row in rows])
    low = values - np.maximum(1.0, values - spread)
    high = np.minimum(lengths, values + spread) - values
    axes.errorbar(values, places, xerr=np.maximum(0.0, [low, high]), fmt="o", ms=5, capsize=3, color=page.COLOURS[0])
    axes.plot(lengths, places, "|", ms=12, color=page.GREY)
    axes.set_yticks(places, [map_text(row.map) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("effective number of events")
    caption = (
        "Effective number of events of each head: between how many events it divides its attention. Mean over histories, "
        "with one standard deviation. The grey mark is the mean number of events."
    )
    return plot_of(figure, caption)


def group_plot(sums: AttentionSums, grouping: Grouping) -> Plot:
    """Draw the share of attention by group next to the share of events."""
    attention, uniform = group_shares(sums, grouping.name)
    shown = shown_groups(uniform, grouping)
    labels = [grouping.labels[group] for group in shown]
    used = np.flatnonzero(sums.num_histories)
    heads, events = attention[np.ix_(used, shown)], uniform[np.ix_(used, shown)].mean(0)
    names = [map_text(sums.maps[place]) for place in used]
    draw = _lines if grouping.ordered else _bars
    figure = draw(labels, heads, events, names)
    figure.axes[0].set_xlabel(grouping.title)
    figure.axes[0].set_ylabel("mean share")
    more = "" if grouping.ordered else " The groups with the most events are shown."
    caption = (
        f"Attention by {grouping.title}. Grey: the share of the events, which equal weights would give. Above it the model "
        f"looks more closely than at other events.{more}"
    )
    return plot_of(figure, caption)


def shown_groups(uniform: np.ndarray, grouping: Grouping) -> np.ndarray:
    """Return the groups that a plot shows: all between the first and the last with events, or those with the most events.

    uniform: (M, G) share of events.
    """
    events = uniform.sum(0)
    filled = np.flatnonzero(events)
    if grouping.ordered:
        return np.arange(filled[0], filled[-1] + 1)
    return filled[np.argsort(-events[filled], kind="stable")[:MOST_GROUPS]]


def _lines(labels: Sequence[str], heads: np.ndarray, events: np.ndarray, names: Sequence[str]) -> plt.Figure:
    """Draw a line per map, or with many maps their mean and range."""
    figure, axes = plt.subplots(figsize=(7, 3.4))
    places = np.arange(len(labels))
    axes.plot(places, events, "o-", ms=3, color=page.GREY, linewidth=1.6, label="events")
    if len(names) <= MOST_LINES:
        for number, (values, name) in enumerate(zip(heads, names, strict=True)):
            colour = page.COLOURS[number % len(page.COLOURS)]
            style = _STYLES[number // len(page.COLOURS) % len(_STYLES)]
            axes.plot(places, values, style, marker="o", ms=3, color=colour, linewidth=1.2, label=name)
    else:
        axes.fill_between(places, heads.min(0), heads.max(0), color=page.COLOURS[0], alpha=0.2, label="all heads")
        axes.plot(places, heads.mean(0), "o-", ms=3, color=page.COLOURS[0], linewidth=1.6, label="mean of heads")
    axes.set_xticks(places, labels, fontsize=7, rotation=40 if max(map(len, labels)) > 2 else 0, ha="center")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _bars(labels: Sequence[str], heads: np.ndarray, events: np.ndarray, names: Sequence[str]) -> plt.Figure:
    """Draw a bar per group for the mean of all maps, with their range, and one for the events."""
    figure, axes = plt.subplots(figsize=(7, 3.4))
    places = np.arange(len(labels))
    mean = heads.mean(0)
    spread = np.maximum(0.0, [mean - heads.min(0), heads.max(0) - mean]) if len(names) > 1 else None
    axes.bar(places - 0.2, events, 0.4, color=page.GREY, label="events")
    axes.bar(places + 0.2, mean, 0.4, color=page.COLOURS[0], label="attention", yerr=spread, ecolor=page.FAINT_INK)
    axes.set_xticks(places, [_short(label) for label in labels], fontsize=7, rotation=40, ha="right")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _short(label: str) -> str:
    return label if len(label) <= 24 else f"{label[:23]}\u2026"
