"""Sums of attention equal a plain computation, and do not depend on how histories are divided into parts."""

import math
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest

from trainer.data.stream.columns import Lists
from trainer.explanation.aggregates.groups import (
    GroupCodes,
    age_codes,
    age_grouping,
    feature_codes,
    feature_grouping,
    hour_codes,
    hour_grouping,
    recency_codes,
    recency_grouping,
)
from trainer.explanation.aggregates.sums import (
    AttentionSums,
    attention_sums,
    group_shares,
    means,
    merged,
)
from trainer.explanation.aggregates.tables import group_table, map_table
from trainer.explanation.attribution import MapName

MAPS = (MapName("block 1", 0, "weights"), MapName("block 1", 1, "weights"), MapName("block 2", 0, "position"))
CATEGORIES = 5
HOUR = 3_600


def histories(seed: int, lengths: list[int]) -> dict[str, Any]:
    """Return weights of both signs, times in seconds, and one or several categories for each event."""
    draws = np.random.default_rng(seed)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    size = int(offsets[-1])
    weights = draws.normal(size=(len(MAPS), size)) * (draws.random((len(MAPS), size)) < 0.7)
    weights[1] = np.abs(weights[1])
    number = draws.integers(0, 3, size)
    values = draws.integers(0, CATEGORIES + 1, number.sum())  # one id that is in no group
    times = np.sort(draws.integers(0, 400 * 24 * HOUR, size))
    return {
        "weights": weights,
        "offsets": offsets,
        "times": times,
        "at": np.full(len(lengths), int(times.max(initial=0)) + 5),
        "categories": Lists(values, np.concatenate(([0], np.cumsum(number))).astype(np.int64)),
    }


def codes_of(given: dict[str, Any]) -> dict[str, tuple[GroupCodes, int]]:
    return {
        "recency": (recency_codes(given["offsets"]), len(recency_grouping().labels)),
        "age": (age_codes(given["times"], given["at"], given["offsets"], 1), len(age_grouping().labels)),
        "hour": (hour_codes(given["times"], 1), 24),
        "item.category": (feature_codes(given["categories"], CATEGORIES), CATEGORIES),
    }


def sums_of(given: dict[str, Any]) -> AttentionSums:
    return attention_sums(MAPS, given["weights"], given["offsets"], codes_of(given))


def plain(given: dict[str, Any], of_map: int) -> dict[str, Any]:
    """Return means and shares by group of one map, event by event."""
    numbers: list[tuple[float, float, float, int]] = []
    shares: dict[tuple[str, str], list[float]] = {}
    events: dict[tuple[str, str], list[float]] = {}
    offsets = given["offsets"]
    for row in range(offsets.size - 1):
        start, stop = int(offsets[row]), int(offsets[row + 1])
        sizes = [abs(float(given["weights"][of_map, event])) for event in range(start, stop)]
        if not sum(sizes):
            continue
        parts = [size / sum(sizes) for size in sizes]
        entropy = -sum(part * math.log(part) for part in parts if part)
        numbers.append((entropy, math.exp(entropy), max(parts), stop - start))
        for event, part in zip(range(start, stop), parts, strict=True):
            for group, share in plain_groups(given, event, stop, row):
                shares.setdefault(group, []).append(part * share)
                events.setdefault(group, []).append(share / (stop - start))
    count = len(numbers)
    return {
        "count": count,
        "means": np.mean(numbers, axis=0),
        "deviations": np.std(numbers, axis=0, ddof=1),
        "shares": {group: sum(values) / count for group, values in shares.items()},
        "events": {group: sum(values) / count for group, values in events.items()},
    }


def plain_groups(given: dict[str, Any], event: int, stop: int, row: int) -> list[tuple[tuple[str, str], float]]:
    """Return the groups of an event, each with the event's share in it."""
    place = stop - event
    bounds = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 10), (11, 20), (21, 50)]
    low, high = next(pair for pair in bounds if pair[0] <= place <= pair[1])
    groups = [(("recency", str(low) if low == high else f"{low} to {high}"), 1.0)]
    age = int(given["at"][row] - given["times"][event])
    limits = {"1 minute": 60, "1 hour": HOUR, "1 day": 24 * HOUR, "1 week": 7 * 24 * HOUR, "30 days": 30 * 24 * HOUR}
    limits |= {"90 days": 90 * 24 * HOUR, "1 year": 365 * 24 * HOUR}
    label = next((f"under {name}" for name, limit in limits.items() if age < limit), "1 year or more")
    groups.append((("age", label), 1.0))
    groups.append((("hour", f"{int(given['times'][event]) // HOUR % 24:02}"), 1.0))
    column = given["categories"]
    ids = column.values[column.offsets[event] : column.offsets[event + 1]]
    return groups + [(("item.category", f"c{int(i) if i < CATEGORIES else 0}"), 1.0 / ids.size) for i in ids]


LENGTHS = [3, 0, 1, 25, 7, 12, 0, 2, 40]


def test_sums_equal_a_plain_computation() -> None:
    given = histories(1, LENGTHS)
    given["weights"][2, :3] = 0.0  # a history in which a map has no weight
    sums = sums_of(given)
    rows = {row.map: row for row in means(sums)}
    groupings = [recency_grouping(), age_grouping(), hour_grouping()]
    groupings.append(feature_grouping("item.category", "category", [f"c{i}" for i in range(CATEGORIES)]))
    table = group_table(sums, groupings).to_pylist()
    for number, name in enumerate(MAPS):
        expected = plain(given, number)
        row = rows[name]
        assert row.num_histories == expected["count"]
        got = [row.entropy, row.effective, row.largest, row.length]
        assert got == pytest.approx(expected["means"].tolist(), rel=1e-12)
        deviations = [row.entropy_deviation, row.effective_deviation]
        assert deviations == pytest.approx(expected["deviations"][:2].tolist(), rel=1e-9)
        own = [r for r in table if (r["layer"], r["head"]) == (name.layer, name.head + 1)]
        assert {r["channel"] for r in own} == {name.channel}
        for column, key in (("attention", "shares"), ("events", "events")):
            found_here = {(r["grouping"], r["group"]): r[column] for r in own if r["events"] or r[column]}
            assert found_here == pytest.approx(expected[key], rel=1e-12)
    assert rows[MAPS[2]].num_histories == rows[MAPS[0]].num_histories - 1
    assert map_table(sums).num_rows == len(MAPS)


def test_sums_of_parts_add_up() -> None:
    whole = histories(2, LENGTHS)
    expected = sums_of(whole)
    parts = []
    for first, stop in ((0, 2), (2, 4), (4, 9)):
        low, high = whole["offsets"][first], whole["offsets"][stop]
        part = {
            "weights": whole["weights"][:, low:high],
            "offsets": whole["offsets"][first : stop + 1] - low,
            "times": whole["times"][low:high],
            "at": whole["at"][first:stop],
            "categories": whole["categories"].sliced(int(low), int(high)),
        }
        parts.append(sums_of(part))
    parts.append(sums_of(histories(3, [0, 0])))  # a worker without histories
    together = merged(parts)
    assert together is not None
    assert [row.num_histories for row in means(together)] == [row.num_histories for row in means(expected)]
    for got, wanted in zip(means(together), means(expected), strict=True):
        numbers = [pytest.approx(value, rel=1e-9) for value in astuple(wanted)[1:]]
        assert list(astuple(got)[1:]) == numbers
    for name in expected.groups:
        for one, other in zip(group_shares(together, name), group_shares(expected, name), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)
    assert merged([]) is None


def test_attention_on_one_event_or_on_all() -> None:
    weights = np.asarray([[0.0, 3.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    sums = attention_sums(MAPS, weights, np.asarray([0, 4]), {"recency": (recency_codes(np.asarray([0, 4])), 13)})
    one, every = means(sums)
    assert (one.entropy, one.effective, one.largest) == (0.0, 1.0, 1.0)
    assert (every.effective, every.largest) == pytest.approx((4.0, 0.25))
    attention, events = group_shares(sums, "recency")
    assert attention[0, :4].tolist() == [0.0, 0.0, 1.0, 0.0]  # the third place from the newest event
    assert events[0, :4].tolist() == [0.25] * 4


def test_sums_of_other_maps_are_refused() -> None:
    one = sums_of(histories(4, [2]))
    other = attention_sums([MAPS[0]], np.ones((1, 2)), np.asarray([0, 2]), {})
    with pytest.raises(ValueError, match="same maps"):
        one + other
