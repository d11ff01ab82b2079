"""Room for workers on nodes: by resources, labels and strategy; and what the messages name."""

from typing import Any

import pytest

from cluster.config.run_config import check_config
from cluster.ray_cluster.room import (
    NodeRoom,
    evaluation_problem,
    matches,
    resource_problem,
    room_on,
    sets_on,
    workers_on,
)
from trainer.errors import UserError


def cluster(**values: Any) -> Any:
    return check_config({"logs": {"path": "a.parquet"}, "cluster": {"address": "auto", **values}}, "test").cluster


NODES = [NodeRoom("10.0.0.1", {"CPU": 8.0}), NodeRoom("10.0.0.2", {"CPU": 3.0, "GPU": 1.0})]


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ({"num_workers": 11}, True),
        ({"num_workers": 12}, False),
        ({"num_workers": 12, "min_workers": 11}, True),
        ({"num_workers": 5, "cpus_per_worker": 2}, True),  # four and one
        ({"num_workers": 3, "cpus_per_worker": 4}, False),  # 11 CPUs in all, but not four of them on the second node
        ({"num_workers": 1, "gpus_per_worker": 1}, True),
        ({"num_workers": 2, "gpus_per_worker": 1}, False),
        ({"num_workers": 2, "gpus_per_worker": 1, "autoscaling": True}, True),
    ],
)
def test_workers_must_fit_on_the_nodes_one_by_one(values: dict[str, Any], fits: bool) -> None:
    assert (resource_problem(cluster(**values), NODES) is None) == fits


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ({"num_workers": 10}, True),
        ({"num_workers": 11}, False),
        ({"num_workers": 11, "min_workers": 1}, False),  # they would grow into the room of the others
        ({"num_workers": 11, "autoscaling": True}, True),
        ({"num_workers": 2, "cpus_per_worker": 4}, True),  # on the first node, and three CPUs on the second
        ({"num_workers": 1, "gpus_per_worker": 1}, True),
    ],
)
def test_workers_of_evaluation_must_fit_in_addition(values: dict[str, Any], fits: bool) -> None:
    assert (evaluation_problem(cluster(**values, evaluation={"num_workers": 1}), NODES) is None) == fits
    assert evaluation_problem(cluster(**values), NODES) is None


def test_the_message_names_what_is_missing() -> None:
    problem = resource_problem(cluster(num_workers=4, gpus_per_worker=1), NODES)
    assert problem is not None
    assert "4 workers with 1 CPU and 1 GPU each do not fit" in problem
    assert "10.0.0.2: 3 CPUs and 1 GPUs" in problem
    assert "room for 1, so 3 more would wait for ever" in problem


def test_a_worker_without_gpu_counts_cpus_alone() -> None:
    assert workers_on({"CPU": 5.0}, {"CPU": 2, "GPU": 0}) == 2


LABELLED = [
    NodeRoom("10.0.0.1", {"CPU": 4.0, "slot": 1.0}, {"group": "train", "zone": "a"}),
    NodeRoom("10.0.0.2", {"CPU": 2.0, "slot": 3.0}, {"group": "train", "zone": "b"}),
    NodeRoom("10.0.0.3", {"CPU": 8.0}, {"group": "evaluate"}),
    NodeRoom("10.0.0.4", {"CPU": 16.0}),
]


@pytest.mark.parametrize(
    ("placement", "room"),
    [
        ({}, 30),
        ({"labels": {"group": "train"}}, 6),
        ({"labels": {"group": "!train"}}, 24),  # also the node without the label
        ({"labels": {"group": "in(train, evaluate)"}}, 14),
        ({"labels": {"group": "!in(train,evaluate)"}}, 16),
        ({"labels": {"group": "train", "zone": "b"}}, 2),
        ({"labels": {"group": "none"}}, 0),
        ({"resources": {"slot": 1.0}}, 3),  # one by its slot, and two by their CPUs
        ({"strategy": "spread"}, 30),
        ({"strategy": "strict_spread"}, 4),
        ({"strategy": "strict_pack"}, 16),
        ({"strategy": "strict_pack", "labels": {"group": "train"}}, 4),
    ],
)
def test_workers_go_to_nodes_with_the_labels_by_the_strategy(placement: dict[str, Any], room: int) -> None:
    assert room_on(LABELLED, cluster(placement=placement)) == room
    assert (resource_problem(cluster(num_workers=room + 1, placement=placement), LABELLED) is None) == (room == 31)
    if room:
        assert resource_problem(cluster(num_workers=room, placement=placement), LABELLED) is None


def test_placement_means_nothing_on_a_cluster_that_the_command_starts() -> None:
    placement = {"labels": {"group": "none"}, "strategy": "strict_spread", "resources": {"slot": 1.0}}
    here = cluster(num_workers=9, placement=placement).model_copy(update={"address": None})
    assert here.per_worker == {"CPU": 1, "GPU": 0}
    assert resource_problem(here, [NodeRoom("127.0.0.1", {"CPU": 9.0})]) is None


def test_a_message_names_the_labels_and_the_strategy() -> None:
    placement = {"strategy": "strict_spread", "labels": {"group": "train"}, "resources": {"slot": 2.0}}
    problem = resource_problem(cluster(num_workers=2, placement=placement), LABELLED)
    assert problem is not None
    assert "2 workers with 1 CPU and slot 2 on a node of its own each do not fit" in problem
    assert (
        "its nodes with the labels group = train (10.0.0.1: 4 CPUs and slot 1, 10.0.0.2: 2 CPUs and slot 3)" in problem
    )
    assert "change cluster.placement" in problem
    packed = resource_problem(cluster(num_workers=17, placement={"strategy": "strict_pack"}), LABELLED)
    assert packed is not None
    assert "17 workers with 1 CPU each, all on one node, do not fit" in packed


@pytest.mark.parametrize(
    ("training", "evaluation", "times"),
    [
        ({}, {}, 10),  # 3 of 30 CPUs each
        ({"labels": {"group": "train"}}, {}, 3),
        ({"labels": {"group": "train"}}, {"labels": {"group": "train"}}, 2),
        ({"labels": {"group": "evaluate"}}, {"labels": {"group": "evaluate"}}, 2),
        ({"strategy": "strict_spread"}, {"labels": {"group": "none"}}, 0),
        ({"strategy": "strict_pack", "labels": {"zone": "b"}}, {}, 1),
        ({"strategy": "strict_spread", "labels": {"group": "train"}}, {}, 2),
    ],
)
def test_both_groups_fit_as_often_as_nodes_hold_them(
    training: dict[str, Any], evaluation: dict[str, Any], times: int
) -> None:
    config = cluster(num_workers=2, placement=training, evaluation={"num_workers": 1, "placement": evaluation})
    assert config.of_evaluation is not None
    assert sets_on(LABELLED, (config, config.of_evaluation), 99) == times
    assert (evaluation_problem(config, LABELLED) is None) == (times > 0)


def test_a_missing_label_has_none_of_the_values() -> None:
    assert matches({}, {"group": "!a"})
    assert matches({}, {"group": "!in(a, b)"})
    assert not matches({}, {"group": "a"})
    assert matches({"group": "a", "x": "y"}, {})


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ({"labels": {"group": "a b"}}, '"a b" is no condition'),
        ({"labels": {"group": "in()"}}, r'"in\(\)" is no condition'),
        ({"labels": {"group!": "a"}}, '"group!" is no label of a node'),
        ({"resources": {"CPU": 2.0}}, "CPU is set by cpus_per_worker"),
        ({"resources": {"slot": 0.0}}, "slot = 0 is no amount above 0"),
        ({"resources": {"slot": float("inf")}}, "must be a finite number"),
        ({"strategy": "even"}, "strategy"),
    ],
)
def test_a_placement_that_ray_would_refuse_is_refused_first(placement: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cluster(placement=placement)
    if "labels" in placement:
        with pytest.raises(UserError, match=message):
            cluster(prepare_labels=placement["labels"])
