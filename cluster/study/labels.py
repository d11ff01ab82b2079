"""Places of labels in a plot: labels cover neither each other nor points and bars. Pure geometry, in points of 1/72 inch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

DISTANCES = (6.0, 11.0, 17.0, 24.0, 32.0, 41.0)  # of the centre of a label's nearest edge from its point
DIRECTIONS = 16
POINT_RADIUS = 4.0  # of the marks of points


@dataclass(frozen=True)
class Label:
    """A label to be placed."""

    x: float
    """The place of its point."""
    y: float
    """The place of its point."""
    width: float
    """The extent of its text."""
    height: float
    """The extent of its text."""


@dataclass(frozen=True)
class Box:
    """A rectangle by its edges."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "Box") -> float:
        """Return the area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)


def place_labels(labels: Sequence[Label], obstacles: Sequence[Box] = ()) -> list[tuple[float, float]]:
    """Return the offset of the centre of each label from its point; earlier labels choose first.

    Of the candidates around a point the nearest one without any overlap is taken, upper right first. If all overlap, it is the one
    with the least overlap. Obstacles are what else should stay uncovered, such as bars.
    """
    points = [
        Box(one.x - POINT_RADIUS, one.y - POINT_RADIUS, one.x + POINT_RADIUS, one.y + POINT_RADIUS) for one in labels
    ]
    placed: list[Box] = []
    offsets = []
    for label in labels:
        best = min(
            (
                (_covered(_box(label, offset), [*points, *obstacles, *placed]), number, offset)
                for number, offset in _candidates(label)
            ),
            key=lambda candidate: candidate[:2],
        )
        offsets.append(best[2])
        placed.append(_box(label, best[2]))
    return offsets


def _candidates(label: Label) -> list[tuple[int, tuple[float, float]]]:
    """Return numbered offsets, the nearest first and in each ring from the upper right in alternating directions."""
    turns = [((k + 1) // 2) * (1 if k % 2 else -1) for k in range(DIRECTIONS)]
    offsets = []
    for distance in DISTANCES:
        for turn in turns:
            angle = math.pi / 4 + turn * 2 * math.pi / DIRECTIONS
            across, up = math.cos(angle), math.sin(angle)
            offsets.append((across * (distance + label.width / 2), up * (distance + label.height / 2)))
    return list(enumerate(offsets))


def _box(label: Label, offset: tuple[float, float]) -> Box:
    """Return the rectangle of a label at an offset from its point."""
    x, y = label.x + offset[0], label.y + offset[1]
    return Box(x - label.width / 2, y - label.height / 2, x + label.width / 2, y + label.height / 2)


def _covered(box: Box, others: Sequence[Box]) -> float:
    """Return the area of a rectangle that others cover, counted for each."""
    return sum(box.overlap(other) for other in others)
