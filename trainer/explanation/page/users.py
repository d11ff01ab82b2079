"""Users of the page with their explained items, from the tables of a folder of explanations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest
from trainer.evaluation.run_header import moment_of
from trainer.explanation.command.folder import EVENTS, HEADS, SETS, read_table
from trainer.explanation.page.item_facts import Item, item_facts

NUM_REASONS = 3  # events that are named as reasons
NUM_HEADS = 3  # heads that are named
MOST_BARS = 120  # most recent events of a strip


@dataclass(frozen=True)
class Event:
    """One event of a history."""

    position: int
    """Its number in the history of the user, from 1."""
    item: Item
    """Its item."""
    when: str
    """Its time as text; empty without times."""
    values: tuple[float, ...]
    """Its value by each method."""


@dataclass(frozen=True)
class Bar:
    """One event of a strip."""

    height: int
    """Size of the value in percent of the largest one, at least 2."""
    is_against: bool
    """Whether the value is negative."""
    text: str
    """Event and value in words."""


@dataclass(frozen=True)
class Strip:
    """The values of a history by one method, the oldest event first."""

    method: str
    """Name of the method."""
    bars: tuple[Bar, ...]
    """Its most recent events."""
    num_left_out: int
    """Older events that are not shown."""
    label: str
    """The strip in words."""


@dataclass(frozen=True)
class Reason:
    """An event that speaks for the item."""

    event: Event
    """The event."""
    share: str
    """Its share of all that speaks for the item."""
    ago: str
    """Its place, counted from the newest event."""


@dataclass(frozen=True)
class Change:
    """The smallest set of events that changes the answer when it is removed."""

    removed: tuple[Event, ...]
    """The events."""
    answer: Item | None
    """The best item without them; None for rankers."""
    text: str
    """What changes, as a sentence."""


@dataclass(frozen=True)
class HeadEffect:
    """The effect of an attention head."""

    name: str
    """Layer and number."""
    effect: float
    """Fall of the score without it."""
    share: str
    """The same in percent of the score; empty for a score near 0."""


@dataclass(frozen=True)
class ShownItem:
    """An item that is explained to a user."""

    item: Item
    """The item."""
    place: str
    """Its place in the user's list in words; empty for a given item."""
    score: float
    """Its score."""
    reasons: tuple[Reason, ...]
    """The events that speak most for it."""
    against: Reason | None
    """The event that speaks most against it."""
    strips: tuple[Strip, ...]
    """The history by each method."""
    events: tuple[Event, ...]
    """All events, the newest first."""
    heads: tuple[HeadEffect, ...]
    """The heads with the largest effect."""
    change: Change | None
    """What would change the answer; None if it was not computed."""


@dataclass(frozen=True)
class ShownUser:
    """A user of the page."""

    name: str
    """The user as in the logs."""
    num_events: int
    """Events of the history before the request."""
    items: tuple[ShownItem, ...]
    """The explained items."""


def shown_users(job: Job, manifest: Manifest, folder: Path, number: int, ranks: bool) -> list[ShownUser]:
    """Return some users of a folder of explanations, evenly spread over all, so that nobody chose them.

    Args:
        job: the run.
        manifest: the manifest of its dataset.
        folder: the folder, with its tables.
        number: the number of users.
        ranks: whether the model is a ranker, of which impressions are explained.
    """
    tables = {name: read_table(folder, name) for name in (EVENTS, HEADS, SETS)}
    events = tables[EVENTS]
    assert events is not None
    names = pc.unique(events.column("user_id"))
    places = np.unique(np.linspace(0, len(names) - 1, min(number, len(names))).astype(np.int64))
    chosen = names.take(pa.array(places))
    rows = {
        name: table.filter(pc.is_in(table.column("user_id"), value_set=chosen)).to_pylist()
        for name, table in tables.items()
        if table is not None
    }
    values = [row[column] for of in rows.values() for row in of for column in _ITEMS if column in row]
    facts = item_facts(job, manifest, values)
    writer = _Writer(manifest, facts, ranks)
    return [writer.user(user, rows) for user in chosen.to_pylist()]


_ITEMS = ("item_id", "event_item_id", "new_item_id")


@dataclass(frozen=True)
class _Writer:
    """Turns rows into what the page shows."""

    manifest: Manifest
    facts: Mapping[object, Item]
    ranks: bool

    def user(self, name: object, rows: Mapping[str, list[dict[str, Any]]]) -> ShownUser:
        """Return one user from the rows of all shown users."""
        own = {table: [row for row in of if row["user_id"] == name] for table, of in rows.items()}
        questions = list(dict.fromkeys((row["item_id"], row["rank"]) for row in own[EVENTS]))
        items = tuple(
            self.item(
                question,
                {table: [row for row in of if (row["item_id"], row["rank"]) == question] for table, of in own.items()},
            )
            for question in questions
        )
        return ShownUser(str(name), max(row["position"] for row in own[EVENTS]), items)

    def item(self, question: tuple[object, int | None], rows: Mapping[str, list[dict[str, Any]]]) -> ShownItem:
        """Return one explained item from its rows."""
        methods = list(dict.fromkeys(row["method"] for row in rows[EVENTS]))
        events = self.events(rows[EVENTS], methods)
        item, rank = question
        first = [event.values[0] for event in events]
        return ShownItem(
            item=self.facts[item],
            place=self._place(rank),
            score=rows[EVENTS][0]["score"],
            reasons=_reasons(events, first),
            against=_against(events, first),
            strips=tuple(_strip(method, number, events) for number, method in enumerate(methods)),
            events=tuple(reversed(events)),
            heads=_heads(rows.get(HEADS, []), rows[EVENTS][0]["score"]),
            change=self.change(rows.get(SETS, []), events),
        )

    def events(self, rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> list[Event]:
        """Return the events of a question, the oldest first."""
        by_position: dict[int, dict[str, dict[str, Any]]] = {}
        for row in rows:
            by_position.setdefault(row["position"], {})[row["method"]] = row
        return [
            Event(
                position=position,
                item=self.facts[of[methods[0]]["event_item_id"]],
                when=self._when(of[methods[0]]["time"]),
                values=tuple(float(of[method]["value"]) for method in methods),
            )
            for position, of in sorted(by_position.items())
        ]

    def change(self, rows: Sequence[dict[str, Any]], events: Sequence[Event]) -> Change | None:
        """Return what would change the answer."""
        if not rows:
            return None
        row = rows[0]
        by_position = {event.position: event for event in events}
        removed = tuple(by_position[position] for position in row["positions"])
        new = None if row["new_item_id"] is None else self.facts[row["new_item_id"]]
        return Change(removed, new, _change_text(row, len(removed), new is not None))

    def _place(self, rank: int | None) -> str:
        if rank is None:
            return ""
        if self.ranks:
            return "the latest item that was shown" if rank == 1 else f"number {rank} of the items shown last"
        return "the best recommendation" if rank == 1 else f"recommendation {rank}"

    def _when(self, time: Any) -> str:
        if time is None:
            return ""
        if not isinstance(time, int):
            return f"{time:%Y-%m-%d %H:%M} UTC"
        text = moment_of(time, self.manifest)
        return f"{text[:16]} UTC" if text.endswith(" UTC") else text


def _reasons(events: Sequence[Event], values: Sequence[float]) -> tuple[Reason, ...]:
    """Return the events that speak most for the item."""
    order = sorted((place for place, value in enumerate(values) if value > 0), key=lambda place: -values[place])
    total = sum(value for value in values if value > 0)
    return tuple(_reason(events, place, values[place] / total) for place in order[:NUM_REASONS])


def _against(events: Sequence[Event], values: Sequence[float]) -> Reason | None:
    """Return the event that speaks most against the item."""
    total = sum(-value for value in values if value < 0)
    if not total:
        return None
    place = int(np.argmin(values))
    return _reason(events, place, -values[place] / total)


def _reason(events: Sequence[Event], place: int, share: float) -> Reason:
    back = len(events) - 1 - place
    ago = "the newest event" if back == 0 else "one event earlier" if back == 1 else f"{back} events earlier"
    return Reason(events[place], f"{100 * share:.0f} %", ago)


def _strip(method: str, number: int, events: Sequence[Event]) -> Strip:
    shown = events[-MOST_BARS:]
    largest = max((abs(event.values[number]) for event in events), default=0.0) or 1.0
    bars = tuple(
        Bar(
            height=max(2, round(100 * abs(event.values[number]) / largest)),
            is_against=event.values[number] < 0,
            text=f"event {event.position}, {event.item.title}: {event.values[number]:+.3g}",
        )
        for event in shown
    )
    label = f"Values of {len(shown)} events by {method}, the oldest first"
    return Strip(method, bars, len(events) - len(shown), label)


def _heads(rows: Sequence[dict[str, Any]], score: float) -> tuple[HeadEffect, ...]:
    """Return the heads with the largest effects."""
    order = sorted(rows, key=lambda row: -abs(row["effect"]))
    return tuple(
        HeadEffect(
            name=f"{row['layer']}, head {row['head']}",
            effect=row["effect"],
            share=_share_of(row["effect"], score),
        )
        for row in order[:NUM_HEADS]
    )


def _share_of(effect: float, score: float) -> str:
    """Return an effect in percent of the score; empty if it is less than half a percent, or the score is near 0."""
    share = effect / abs(score) if abs(score) > 1e-6 else 0.0
    return f"{100 * share:+.0f} %" if abs(share) >= 0.005 else ""


def _change_text(row: Mapping[str, Any], number: int, has_new: bool) -> str:
    """Return what removing the set changes, as a sentence."""
    if not row["is_changed"]:
        return f"Removing any set of up to {row['most_removed']} events that was tried does not change the answer."
    events = "this event" if number == 1 else f"these {number} events"
    new = "the best item would be another one" if has_new else "the answer would change"
    exact = " No smaller set does this." if row["is_smallest"] else " A smaller set may exist."
    return f"Without {events}, {new}.{exact}"
