"""Sums of attention over histories. Those of several batches or workers are added, and give the same means.

The weights of a head in a history are first divided by their sum, so each history counts once. Of weights that can be negative
(normalisation "silu" or "none") the absolute values are used.

    p_i = |a_i| / sum_j |a_j|      entropy H = - sum_i p_i ln p_i      effective number of events exp(H)

The effective number is 1 if one event has all weight, and the length of the history if all have the same.

Shapes: B histories, N events of all of them, M maps of attention, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce

import numpy as np

from trainer.explanation.aggregates.groups import GroupCodes
from trainer.explanation.attribution import MapName


@dataclass(frozen=True)
class GroupSums:
    """Sums over histories for each map and group."""

    attention: np.ndarray
    """(M, G) float64, share of the weight that is on the events of the group."""
    uniform: np.ndarray
    """(M, G) float64, share of the events that are in the group: what equal weights would give."""

    def __add__(self, other: "GroupSums") -> "GroupSums":
        return GroupSums(self.attention + other.attention, self.uniform + other.uniform)


@dataclass(frozen=True)
class AttentionSums:
    """Sums over histories for each map. A history in which a map has no weight does not count for the map."""

    maps: tuple[MapName, ...]
    """The M maps."""
    num_histories: np.ndarray
    """(M,) int64."""
    length: np.ndarray
    """(M,) float64, number of events."""
    entropy: np.ndarray
    """(M,) float64, in nats."""
    entropy_squares: np.ndarray
    """(M,) float64."""
    effective: np.ndarray
    """(M,) float64, effective number of events."""
    effective_squares: np.ndarray
    """(M,) float64."""
    largest: np.ndarray
    """(M,) float64, the largest share of one event."""
    groups: Mapping[str, GroupSums] = field(default_factory=dict)
    """By name of a grouping."""

    def __add__(self, other: "AttentionSums") -> "AttentionSums":
        if self.maps != other.maps or set(self.groups) != set(other.groups):
            raise ValueError("only sums of the same maps and groupings can be added")
        numbers = {
            entry.name: getattr(self, entry.name) + getattr(other, entry.name)
            for entry in fields(self)
            if entry.name not in ("maps", "groups")
        }
        groups = {name: sums + other.groups[name] for name, sums in self.groups.items()}
        return AttentionSums(maps=self.maps, groups=groups, **numbers)


@dataclass(frozen=True)
class MapMeans:
    """Means over histories of one map."""

    map: MapName
    """The map."""
    num_histories: int
    """Histories in which it has weight."""
    length: float
    """Number of events."""
    entropy: float
    """Entropy in nats."""
    entropy_deviation: float
    """Standard deviation of the entropy over histories."""
    effective: float
    """Effective number of events."""
    effective_deviation: float
    """Its standard deviation over histories."""
    largest: float
    """Largest share of one event."""


def attention_sums(
    maps: Sequence[MapName],
    weights: np.ndarray,
    offsets: np.ndarray,
    codes: Mapping[str, tuple[GroupCodes, int]],
) -> AttentionSums:
    """Return the sums of a batch of histories.

    Args:
        maps: the M maps.
        weights: (M, N) weights of each event, as the last event of its history attends to it.
        offsets: (B + 1,) bounds of the histories; empty ones do not count.
        codes: by grouping, the groups of the N events and the number of groups.
    """
    lengths = np.diff(offsets)
    is_filled = lengths > 0
    starts, lengths = offsets[:-1][is_filled], lengths[is_filled]
    owners = np.repeat(np.arange(lengths.size), lengths)
    sizes = np.abs(weights[:, : offsets[-1]].astype(np.float64))
    if not lengths.size:
        return _no_sums(maps, {name: number for name, (_, number) in codes.items()})
    totals = np.add.reduceat(sizes, starts, axis=1)
    counts = totals > 0  # (M, B)
    shares = sizes / np.where(counts, totals, 1.0)[:, owners]
    terms = np.where(shares > 0, -shares * np.log(np.where(shares > 0, shares, 1.0)), 0.0)
    entropy = np.add.reduceat(terms, starts, axis=1)
    effective = np.where(counts, np.exp(entropy), 0.0)
    largest = np.maximum.reduceat(shares, starts, axis=1)
    equal = np.where(counts, 1.0 / lengths, 0.0)[:, owners]
    return AttentionSums(
        maps=tuple(maps),
        num_histories=counts.sum(1),
        length=counts @ lengths.astype(np.float64),
        entropy=entropy.sum(1),
        entropy_squares=(entropy**2).sum(1),
        effective=effective.sum(1),
        effective_squares=(effective**2).sum(1),
        largest=largest.sum(1),
        groups={
            name: GroupSums(_by_group(shares, of_events, number), _by_group(equal, of_events, number))
            for name, (of_events, number) in codes.items()
        },
    )


def map_text(name: MapName) -> str:
    """Return the name of a map as people read it; heads count from 1."""
    channel = "" if name.channel == "weights" else f", {name.channel}"
    return f"{name.layer}, head {name.head + 1}{channel}"


def merged(parts: Sequence[AttentionSums]) -> AttentionSums | None:
    """Return the sums of all parts, added in their order; None if there are none."""
    return reduce(lambda first, second: first + second, parts) if parts else None


def means(sums: AttentionSums) -> list[MapMeans]:
    """Return the means of each map that has weight in some history."""
    rows = []
    for place, name in enumerate(sums.maps):
        number = int(sums.num_histories[place])
        if number:
            rows.append(
                MapMeans(
                    map=name,
                    num_histories=number,
                    length=float(sums.length[place] / number),
                    entropy=float(sums.entropy[place] / number),
                    entropy_deviation=_deviation(sums.entropy[place], sums.entropy_squares[place], number),
                    effective=float(sums.effective[place] / number),
                    effective_deviation=_deviation(sums.effective[place], sums.effective_squares[place], number),
                    largest=float(sums.largest[place] / number),
                )
            )
    return rows


def group_shares(sums: AttentionSums, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean share of attention and of events by map and group, (M, G) each; 0 for maps without weight.

    name: of the grouping.
    """
    of_group = sums.groups[name]
    number = np.maximum(1, sums.num_histories)[:, None]
    return of_group.attention / number, of_group.uniform / number


def _by_group(values: np.ndarray, codes: GroupCodes, num_groups: int) -> np.ndarray:
    """Return the sums (M, G) of values (M, N) by group."""
    summed = np.zeros((values.shape[0], num_groups))
    for row, of_map in zip(summed, values, strict=True):
        row[:] = np.bincount(codes.groups, of_map[codes.events] * codes.shares, minlength=num_groups)
    return summed


def _no_sums(maps: Sequence[MapName], num_groups: Mapping[str, int]) -> AttentionSums:
    """Return the sums of no history."""
    zeros = np.zeros(len(maps))
    names = ("length", "entropy", "entropy_squares", "effective", "effective_squares", "largest")
    groups = {name: np.zeros((len(maps), number)) for name, number in num_groups.items()}
    return AttentionSums(
        maps=tuple(maps),
        num_histories=zeros.astype(np.int64),
        groups={name: GroupSums(sums, sums.copy()) for name, sums in groups.items()},
        **{name: zeros.copy() for name in names},
    )


def _deviation(total: float, squares: float, number: int) -> float:
    """Return the standard deviation of a sample from its sums; 0 of one value."""
    if number < 2:
        return 0.0
    return float(np.sqrt(max(0.0, squares - total**2 / number) / (number - 1)))
