"""Levels, orders, intervals, contrasts, verdicts in words, and the round trip of results through JSON."""

import json

import numpy as np
import pytest

from trainer.explanation.faithfulness.levels import Levels
from trainer.explanation.faithfulness.measure import UserMeasurements
from trainer.explanation.faithfulness.metrics import METRICS, larger_is_better, metric_names
from trainer.explanation.faithfulness.orders import order_of, popularity_order, random_order, recency_order
from trainer.explanation.faithfulness.results import Faithfulness, from_json, to_json
from trainer.explanation.faithfulness.summary import summarise
from trainer.explanation.faithfulness.variants import SIDES, variants_of
from trainer.explanation.faithfulness.words import verdict

OFFSETS = np.asarray([0, 4, 4, 7])


def measured(better: str = "ours", users: int = 300) -> UserMeasurements:
    """Return values in which `better` is best by every metric, and recency and random differ by noise only."""
    random = np.random.default_rng(2)
    base = random.uniform(0.4, 0.6, users)
    values = {}
    for order in ("ours", "random", "recency"):
        for name in metric_names():
            shift = 0.2 * (order == better) * (1 if larger_is_better(name) else -1)
            for removed in ("shares", "3"):
                values[order, name, removed] = base + shift + random.normal(0, 0.02, users)
    return UserMeasurements(values, "deleted", np.full(users, 9))


def test_levels_never_empty_a_history() -> None:
    levels = Levels(fixed=(2, 4))
    lengths = np.asarray([5, 7, 50])
    removed = levels.counts(lengths, "most")
    assert removed[0].tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 2, 4]
    assert (removed.max(axis=1) < lengths).all()
    kept = levels.counts(lengths, "kept")
    assert kept[2].tolist() == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 2, 4]
    assert kept.min() == 1
    assert levels.fewest_events == 5


def test_areas_follow_the_trapezoid_rule() -> None:
    levels = Levels(num_shares=3, fixed=(2,))
    summed = levels.summarise(np.asarray([[1.0, 0.5, 0.25, 0.125]]))
    assert summed["shares"] == pytest.approx([(0.5 + 0.5 + 0.125) / 2])
    assert summed["2"].tolist() == [0.125]


def test_orders_put_the_most_important_event_first() -> None:
    weights = np.asarray([0.1, 3.0, np.nan, 0.1, 1.0, 1.0, 2.0])
    assert order_of(weights, OFFSETS).tolist() == [1, 3, 0, 2, 2, 1, 0]
    assert recency_order(OFFSETS).tolist() == [3, 2, 1, 0, 2, 1, 0]
    popular = popularity_order(np.asarray([1, 2, 3, 0, 3, 2, 2]), np.asarray([5, 9, 7]), OFFSETS)
    assert popular.tolist() == [1, 2, 0, 3, 2, 1, 0]


def test_random_orders_depend_on_the_key_of_a_history_alone() -> None:
    keys, lengths = np.asarray([7, 8, 9]), np.asarray([6, 6, 6])
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    together = random_order(keys, offsets, 1).reshape(3, 6)
    assert (random_order(keys[1:2], np.asarray([0, 6]), 1) == together[1]).all()
    assert (np.sort(together, axis=1) == np.arange(6)).all()
    assert (random_order(keys, offsets, 2).reshape(3, 6) != together).any()


def test_each_distinct_removal_is_one_variant() -> None:
    lengths, levels = np.asarray([5, 9]), Levels()
    variants = variants_of(lengths, 2, levels)
    keys = np.stack((variants.history, variants.order, variants.first, variants.stop))
    assert np.unique(keys, axis=1).shape[1] == variants.size
    assert ((variants.first == variants.stop).sum()) == 2  # one without a removal for each history
    orders = [recency_order(np.asarray([0, 5, 14])), np.asarray([2, 0, 1, 4, 3, *range(9)])]
    history, removed = variants.removed(slice(0, variants.size), orders, np.asarray([0, 5, 14]))
    bounds = np.concatenate(([0], np.cumsum(lengths[history])))
    for side, index in zip(SIDES, variants.index[1], strict=True):
        variant = index[0, levels.names.index("3") + levels.num_shares - 1]
        flags = removed[bounds[variant] : bounds[variant + 1]]
        expected = {"most": [2, 0, 1], "least": [1, 4, 3], "kept": [4, 3]}[side]
        assert sorted(np.flatnonzero(flags).tolist()) == sorted(expected)


def test_contrasts_know_which_direction_is_better() -> None:
    result = summarise(measured(), "sasrec", 4, 1, num_resamples=200)
    for metric in METRICS:
        name = metric.value_name(5)
        contrast = result.contrast("ours", "random", name)
        assert contrast is not None
        assert contrast.outcome == "better"
        assert contrast.interval[0] < contrast.difference < contrast.interval[1]
        assert abs(contrast.difference) == pytest.approx(0.2, abs=0.01)
        noise = result.contrast("recency", "random", name)
        assert noise is not None
        assert noise.outcome == "none"
    assert result.contrast("random", "recency", "del") is None  # each pair once
    worse = summarise(measured("random"), "sasrec", 4, 1, num_resamples=200).contrast("ours", "random", "pos@5")
    assert worse is not None
    assert worse.outcome == "worse"


def test_results_survive_json() -> None:
    result = summarise(measured(), "sasrec", 4, 1, num_resamples=50)
    assert from_json(Faithfulness, json.loads(json.dumps(to_json(result)))) == result
    assert result.removal_statement.startswith("Removing an event means deleting it")
    assert result.removals == ("shares", "3")


def test_verdicts_say_against_what() -> None:
    faithful = verdict(summarise(measured(), "sasrec", 0, 1, num_resamples=50), "ours")
    assert faithful.level == "faithful"
    assert any("more faithful than a random order in all 4 measures" in sentence for sentence in faithful.sentences)
    assert verdict(summarise(measured("recency"), "sasrec", 0, 1, num_resamples=50), "ours").level == "not"
