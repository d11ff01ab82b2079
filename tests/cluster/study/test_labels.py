"""Labels of points cover neither each other nor other points, as long as there is room."""

import itertools

import numpy as np
import pytest

from cluster.study.labels import POINT_RADIUS, Box, Label, place_labels


def boxes_of(labels: list[Label], offsets: list[tuple[float, float]]) -> list[Box]:
    return [
        Box(
            one.x + across - one.width / 2,
            one.y + up - one.height / 2,
            one.x + across + one.width / 2,
            one.y + up + one.height / 2,
        )
        for one, (across, up) in zip(labels, offsets, strict=True)
    ]


@pytest.mark.parametrize("seed", range(30))
def test_no_label_covers_another_or_a_point(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 14))
    labels = [
        Label(*random.uniform(0, 60, 2).tolist(), width=random.choice([5.0, 10.0]), height=7.0) for _ in range(count)
    ]
    boxes = boxes_of(labels, place_labels(labels))
    assert all(one.overlap(other) == 0 for one, other in itertools.combinations(boxes, 2))
    for box, label in itertools.product(boxes, labels):
        point = Box(label.x - POINT_RADIUS, label.y - POINT_RADIUS, label.x + POINT_RADIUS, label.y + POINT_RADIUS)
        assert box.overlap(point) == 0


def test_points_at_one_place_have_labels_around_it() -> None:
    labels = [Label(10.0, 10.0, 5.0, 7.0)] * 4
    offsets = place_labels(labels)
    assert len(set(offsets)) == 4
    assert all(one.overlap(other) == 0 for one, other in itertools.combinations(boxes_of(labels, offsets), 2))


def test_a_single_label_is_at_the_upper_right() -> None:
    ((across, up),) = place_labels([Label(0.0, 0.0, 5.0, 7.0)])
    assert across > 0
    assert up > 0


def test_a_bar_is_left_uncovered() -> None:
    label, bar = Label(0.0, 0.0, 5.0, 7.0), Box(-1.0, -40.0, 9.0, 40.0)
    (box,) = boxes_of([label], place_labels([label], [bar]))
    assert box.overlap(bar) == 0


def test_without_room_every_label_still_has_a_place() -> None:
    labels = [Label(float(k % 3), 0.0, 30.0, 30.0) for k in range(60)]
    assert len(place_labels(labels)) == 60
