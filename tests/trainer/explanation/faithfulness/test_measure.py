"""Metrics of faithfulness equal removing events by hand, one history at a time, and sorting all items."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.explained_models import Case, case_of
from tests.trainer.explanation.conftest import Datasets
from trainer.data.stream.columns import gather
from trainer.explanation.catalogue import Seen
from trainer.explanation.explained import ExplainedNextItem, ExplainedRanker, score
from trainer.explanation.faithfulness.levels import Levels
from trainer.explanation.faithfulness.measure import long_enough, measure
from trainer.explanation.faithfulness.orders import order_of, random_order, recency_order
from trainer.explanation.faithfulness.scoring import CatalogueScorer, RankerScorer, whole_catalogue
from trainer.explanation.questions import Questions
from trainer.explanation.removal import Removal, remove

LEVELS = Levels(num_shares=4, fixed=(2, 3))
CUTOFFS = (5, 10, 20)


def measured_case(form: str, datasets: Datasets) -> tuple[Case, Questions, Seen]:
    """Return a model, its questions with enough events, and the items of their whole histories."""
    case = case_of(form, *datasets, max_history=7)
    kept = long_enough(case.asked, LEVELS)
    begin = case.packed.starts[case.rows[kept]]
    seen = Seen(*gather(case.packed.items.astype(np.int64), begin, begin + case.low[kept]))
    return case, case.asked.take(kept), seen


def weights_of(asked: Questions) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(asked.items.size)


def place_and_probability(scorer: CatalogueScorer, one: Questions, seen: set[int]) -> tuple[int, float]:
    """Return the place and the probability of the target of one question by sorting all candidates."""
    model = scorer.model
    prepared = model.prepare(one)
    with torch.no_grad():
        user = model.user_vectors(prepared, model.vectors(prepared))[0]
    scores = {id_: float(value) for id_, value in enumerate(scorer.shard.vectors @ user, start=1) if id_ not in seen}
    target = int(one.targets[0])
    ordered = sorted(scores, key=lambda id_: (-scores[id_], id_))
    largest = max(scores.values())
    total = sum(math.exp(value - largest) for value in scores.values())
    return ordered.index(target) + 1, math.exp(scores[target] - largest) / total


def by_hand(
    scorer: CatalogueScorer,
    asked: Questions,
    number: int,
    seen: set[int],
    order: list[int],
    how: Removal,
    pool: Questions,
) -> dict[tuple[str, str], float]:
    """Return the values of one user by metric and what is removed."""
    one, length = asked.take(np.asarray([number])), len(order)

    def without(places: list[int]) -> tuple[int, float]:
        removed = np.isin(np.arange(length), places)
        return place_and_probability(scorer, remove(one, removed, how, pool, 3), seen)

    def values(count: int, kept: int) -> dict[str, float]:
        place, probability = without(order[:count])
        least, _ = without(order[length - count :])
        return {
            **{f"pos@{k}": float(place <= k) for k in CUTOFFS},
            **{f"neg@{k}": float(least <= k) for k in CUTOFFS},
            "del": probability,
            "ins": without(order[kept:])[1],
            "cdcg": 1 / math.log2(1 + place),
        }

    counts = [min(length - 1, math.floor(step / 4 * length + 0.5)) for step in range(4)]
    keeps = [max(1, math.floor(step / 4 * length + 0.5)) for step in range(1, 5)]
    at_shares = [values(count, kept) for count, kept in zip(counts, keeps, strict=True)]
    result = {
        (metric, "shares"): sum(weight * at[metric] for weight, at in zip((0.5, 1, 1, 0.5), at_shares, strict=True)) / 3
        for metric in at_shares[0]
    }
    for number_of_events in LEVELS.fixed:
        of_number = values(number_of_events, number_of_events)
        result |= {(metric, str(number_of_events)): value for metric, value in of_number.items()}
    return result


@pytest.mark.parametrize("how", ["deleted", "masked", "replaced"])
@pytest.mark.parametrize("form", ["encoder: hstu", "encoder: sasrec", "encoder: bert4rec"])
def test_values_are_those_of_removing_by_hand(form: str, how: Removal, explained_datasets: Datasets) -> None:
    case, asked, seen = measured_case(form, explained_datasets)
    assert isinstance(case.model, ExplainedNextItem)
    scorer = whole_catalogue(case.model, seen)
    asked = asked.with_targets(scorer.top(asked).top_items[:, 0])
    weights = weights_of(asked)
    orders = {"ours": order_of(weights, asked.offsets), "recency": recency_order(asked.offsets)}
    measured = measure(scorer, asked, orders, how, LEVELS, case.asked, 3)
    for number in range(0, asked.size, 4):
        own = set(seen.items[seen.offsets[number] : seen.offsets[number + 1]].tolist())
        begin, end = asked.offsets[number], asked.offsets[number + 1]
        order = np.argsort(-weights[begin:end]).tolist()
        newest_first = list(range(end - begin))[::-1]
        for name, expected_order in (("ours", order), ("recency", newest_first)):
            expected = by_hand(scorer, asked, number, own, expected_order, how, case.asked)
            actual = {(metric, removed): measured.values[name, metric, removed][number] for metric, removed in expected}
            assert actual == pytest.approx(expected, rel=1e-4, abs=1e-6), (name, number)


def test_the_explained_item_is_the_best_candidate(explained_datasets: Datasets) -> None:
    case, asked, seen = measured_case("encoder: sasrec", explained_datasets)
    assert isinstance(case.model, ExplainedNextItem)
    scorer = whole_catalogue(case.model, seen)
    top = scorer.top(asked).top_items[:, 0]
    scored = scorer.score(asked.with_targets(top), np.arange(asked.size))
    assert scored.places is not None
    assert (scored.places == 1).all()
    assert not any(
        int(item) in seen.items[seen.offsets[number] : seen.offsets[number + 1]] for number, item in enumerate(top)
    )


def test_a_ranker_has_probabilities_of_a_label(explained_datasets: Datasets) -> None:
    case, asked, _ = measured_case("ranker: din", explained_datasets)
    assert isinstance(case.model, ExplainedRanker)
    measured = measure(RankerScorer(case.model), asked, {"recency": recency_order(asked.offsets)}, "deleted", LEVELS)
    assert measured.names(1) == ("del", "ins")
    newest_two = asked.places >= asked.lengths[asked.owner] - 2
    expected = 1 / (1 + np.exp(-score(case.model, remove(asked, newest_two)).astype(np.float64)))
    np.testing.assert_allclose(measured.values["recency", "del", "2"], expected, rtol=1e-5)


def test_values_do_not_depend_on_the_other_histories(explained_datasets: Datasets) -> None:
    case, asked, seen = measured_case("encoder: hstu", explained_datasets)
    assert isinstance(case.model, ExplainedNextItem)
    some = np.asarray([3, 0, 5])
    results = []
    for rows in (np.arange(asked.size), some):
        part = asked.take(rows)
        scorer = whole_catalogue(case.model, seen.of(rows))
        part = part.with_targets(scorer.top(part).top_items[:, 0])
        orders = {"random": random_order(part.keys, part.offsets, 1)}
        results.append(measure(scorer, part, orders, "deleted", LEVELS).values)
    for key, values in results[0].items():
        np.testing.assert_allclose(values[some], results[1][key], rtol=1e-4, atol=1e-7)


def test_short_histories_are_refused(explained_datasets: Datasets) -> None:
    case, asked, seen = measured_case("encoder: sasrec", explained_datasets)
    assert isinstance(case.model, ExplainedNextItem)
    short = replace(asked.only(asked.places < 3))
    with pytest.raises(ValueError, match="at least 4 events"):
        measure(whole_catalogue(case.model, seen), short, {"recency": recency_order(short.offsets)}, levels=LEVELS)
    assert long_enough(short, LEVELS).size == 0
