"""Summary of attention over all explained users, as the page shows it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.explanation.aggregates.groups import Grouping
from trainer.explanation.aggregates.plots import effective_plot, group_plot
from trainer.explanation.aggregates.sums import AttentionSums, group_shares, map_text, means
from trainer.pages.page import Plot, drawing

HEADINGS = ("head", "events", "effective", "entropy (nats)", "largest share")
MIN_EVENTS_SHARE = 0.01  # of all events, of a group that a sentence names


@dataclass(frozen=True)
class ShownAttention:
    """Attention over all explained users."""

    sentences: tuple[str, ...]
    """The main results in words."""
    plots: tuple[Plot, ...]
    """Plots of effective numbers and of groups."""
    rows: tuple[tuple[str, ...], ...]
    """A row per head under HEADINGS."""


def shown_attention(sums: AttentionSums, groupings: Sequence[Grouping]) -> ShownAttention | None:
    """Return where attention goes; None if no head has weight."""
    rows = means(sums)
    if not rows:
        return None
    used = [grouping for grouping in groupings if _has_several(sums, grouping)]
    with drawing():
        plots = (effective_plot(sums), *(group_plot(sums, grouping) for grouping in used))
    narrow, wide = (pick(rows, key=lambda row: row.effective) for pick in (min, max))
    sentences = [
        f"The most focused head, {map_text(narrow.map)}, divides its attention between {narrow.effective:.1f} of "
        f"{narrow.length:.1f} events on average. The widest, {map_text(wide.map)}, between {wide.effective:.1f}.",
        *filter(None, (_sentence(sums, grouping) for grouping in used)),
    ]
    table = tuple(
        (
            map_text(row.map),
            f"{row.length:.1f}",
            f"{row.effective:.1f} \u00b1 {row.effective_deviation:.1f}",
            f"{row.entropy:.2f}",
            f"{100 * row.largest:.0f} %",
        )
        for row in rows
    )
    return ShownAttention(tuple(sentences), plots, table)


def _has_several(sums: AttentionSums, grouping: Grouping) -> bool:
    """Return whether events are in more than one group."""
    _, events = group_shares(sums, grouping.name)
    return int((events.sum(0) > 0).sum()) > 1


def _sentence(sums: AttentionSums, grouping: Grouping) -> str:
    """Return the group with the most attention compared with its share of events; empty if no group is large enough."""
    attention, events = group_shares(sums, grouping.name)
    used = np.flatnonzero(sums.num_histories)
    attention, events = attention[used].mean(0), events[used].mean(0)
    large = np.flatnonzero(events >= MIN_EVENTS_SHARE)
    if not large.size:
        return ""
    best = int(large[np.argmax(attention[large] / events[large])])
    return (
        f"By {grouping.title}, \u201c{grouping.labels[best]}\u201d gets the most attention for its share of events: "
        f"{100 * attention[best]:.1f} % of the attention with {100 * events[best]:.1f} % of the events."
    )
