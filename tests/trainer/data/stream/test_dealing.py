"""Examples that are dealt by their cost, against the rule written plainly, and the costs themselves."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.config.run_config import Config
from models.config import NextItemConfig
from models.costs import Workload, costs_of
from models.histories import Histories
from tests.support.streams import BATCH, KINDS, SEED, Data
from trainer.costing.next_item import CHOSEN_LENGTHS, costs_by_length
from trainer.data.stream.dealing import LARGEST_COST, dealt, owners, runs_within
from trainer.data.stream.global_batches import Chunk, GlobalBatches
from trainer.data.stream.order import Position
from trainer.data.stream.stochastic_length import shortened_length, whole_probabilities

NUM_ITEMS = 1000
LONGEST = 2048
START = Position(0, 0)


def plain_owners(costs: list[int], bounds: list[int], world_size: int) -> list[int]:
    """Deal each run, the element of the largest cost first, to the rank that has the smallest sum."""
    result = [-1] * len(costs)
    for first, stop in pairwise(bounds):
        sums = [0] * world_size
        for element in sorted(range(first, stop), key=lambda place: (-costs[place], place)):
            rank = sums.index(min(sums))
            result[element] = rank
            sums[rank] += costs[element]
    return result


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 50])
def test_elements_go_to_the_rank_with_the_smallest_sum(seed: int, world_size: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 40, 200)
    costs = random.permutation(np.arange(40) ** 2)
    bounds = runs_within(lengths, 500, complete=True)
    actual = owners(lengths, bounds, world_size, costs)
    assert actual.tolist() == plain_owners(costs[lengths].tolist(), bounds.tolist(), world_size)
    for rank in range(world_size):
        assert dealt(lengths, bounds, rank, world_size, costs).tolist() == np.flatnonzero(actual == rank).tolist()


def skewed_lengths(number: int) -> np.ndarray:
    """Return lengths of which a few percent are as long as allowed, and half below a tenth of that."""
    random = np.random.default_rng(5)
    return np.clip(np.exp(random.normal(5.0, 1.3, number)), 1, LONGEST).astype(np.int64)


def largest_share(ranks: np.ndarray, costs: np.ndarray, world_size: int) -> float:
    """Return the largest sum of a rank over the mean."""
    sums = np.bincount(ranks, costs, world_size)
    return float(sums.max() / sums.mean())


@pytest.mark.parametrize("world_size", [8, 1024])
@pytest.mark.parametrize("per_rank", [4, 16, 64])
def test_the_largest_share_falls_when_examples_are_dealt_by_cost(world_size: int, per_rank: int) -> None:
    """Costs have a quadratic part, which dominates at the longest lengths."""
    costs = costs_by_length(config_of(max_history=LONGEST), model_of(max_history=LONGEST), NUM_ITEMS)
    lengths = skewed_lengths(world_size * per_rank)
    bounds = np.asarray([0, lengths.size])
    by_length = largest_share(owners(lengths, bounds, world_size), costs[lengths], world_size)
    by_cost = largest_share(owners(lengths, bounds, world_size, costs), costs[lengths], world_size)
    # No rank can have less than the largest example.
    lower = max(1.0, float(costs[lengths].max() / costs[lengths].mean()) / per_rank)
    assert lower <= by_cost
    assert by_cost - lower < 0.5 * (by_length - lower)


def config_of(train: dict[str, Any] | None = None, **model: Any) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": "run"},
            "logs": {"path": "events.parquet"},
            "model": model,
            "tables": {"item": {"dim": 16}},
            "train": train or {},
        }
    )


def model_of(**given: Any) -> NextItemConfig:
    return NextItemConfig.model_validate(given)


FORMS: dict[str, dict[str, Any]] = {
    "sasrec": {},
    "hstu": {"encoder": {"kind": "hstu"}},
    "window": {"encoder": {"attention": {"window": 4}}},
    "truncated": {"encoder": {"truncate_after": 1, "truncate_to": 8}},
    "merged": {"encoder": {"merge_size": 4, "merge_recent": 8}},
    "masked": {"encoder": {"kind": "bert4rec"}},
    "sampled": {"objective": {"kind": "gbce", "num_negatives": 16}},
}


@pytest.mark.parametrize("form", FORMS)
def test_costs_are_those_of_a_history_alone(form: str) -> None:
    model = model_of(max_history=60, **FORMS[form])
    costs = costs_by_length(config_of(max_history=60, **FORMS[form]), model, NUM_ITEMS)
    assert costs[0] == 0
    assert costs.max() == LARGEST_COST
    expected = []
    for length in range(1, 61):
        alone = Workload(Histories.of(np.asarray([length])), float(length), NUM_ITEMS, items_per_step=0.0)
        expected.append(length * costs_of(model, 16, alone).training)
    np.testing.assert_allclose(costs[1:] / LARGEST_COST, np.asarray(expected) / max(expected), rtol=1e-6)


def test_costs_of_whole_attention_are_a_l_plus_b_l_squared() -> None:
    costs = costs_by_length(config_of(max_history=60), model_of(max_history=60), NUM_ITEMS)
    second = np.diff(costs, 2)
    assert second.min() > 0
    np.testing.assert_allclose(second, second[0], atol=4)  # of 2^32


def test_costs_of_many_lengths_are_interpolated() -> None:
    long = costs_by_length(config_of(max_history=9000), model_of(max_history=9000), NUM_ITEMS)
    assert long.size == 9001 > CHOSEN_LENGTHS
    assert (np.diff(long) > 0).all()
    model = model_of(max_history=9000)
    flops = []
    for length in (777, 9000):
        alone = Workload(Histories.of(np.asarray([length])), float(length), NUM_ITEMS, items_per_step=0.0)
        flops.append(length * costs_of(model, 16, alone).training)
    assert long[777] / long[9000] == pytest.approx(flops[0] / flops[1], rel=1e-3)


def test_an_objective_that_workers_divide_is_left_out() -> None:
    whole = costs_by_length(config_of(max_history=60), model_of(max_history=60), 10**6)
    divided = costs_by_length(config_of({"catalogue_workers": 2}, max_history=60), model_of(max_history=60), 10**6)
    # The objective is linear, so without it a short history costs a smaller part of a long one.
    assert divided[10] < 0.99 * whole[10]


def test_costs_with_stochastic_length_are_means_over_epochs() -> None:
    whole = costs_by_length(config_of(max_history=60), model_of(max_history=60), NUM_ITEMS)
    model = model_of(max_history=60, stochastic_length=1.2)
    costs = costs_by_length(config_of(max_history=60), model, NUM_ITEMS)
    shortened = shortened_length(60, 1.2)
    share = whole_probabilities(np.asarray([60]), shortened)[0]
    mean = share * whole[60] + (1 - share) * whole[shortened]
    assert costs[60] / costs[shortened] == pytest.approx(mean / whole[shortened], rel=1e-6)


def chunks(batches: GlobalBatches, start: Position = START) -> list[Chunk]:
    return list(batches.chunks(start, 2))


@pytest.fixture(scope="module", params=["token budget", "windows in a token budget", "windows, dealt by length"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Data:
    kind = KINDS[request.param]
    folder = tmp_path_factory.mktemp("dealt")
    return Data(folder, kind.write(folder), kind)


def batches_of(data: Data, rank: int, world_size: int, costs: np.ndarray | None) -> GlobalBatches:
    kind = data.kind
    return GlobalBatches(
        data.examples_of_rows,
        BATCH,
        kind.batch_tokens,
        SEED,
        rank,
        world_size,
        costs=costs,
        deals_fixed=kind.deals_fixed,
    )


def test_batches_of_a_fixed_number_are_dealt_in_equal_numbers_and_lengths(tmp_path: Path) -> None:
    kind = KINDS["dealt by length"]
    data = Data(tmp_path, kind.write(tmp_path), kind)
    shares = [chunks(batches_of(data, rank, 2, None)) for rank in range(2)]
    by_order = GlobalBatches(data.examples_of_rows, BATCH, None, SEED, 0, 1)
    assert [of.bounds.tolist() for of in shares[0]] == [of.bounds.tolist() for of in chunks(by_order)]
    for first, second in zip(*shares, strict=True):
        for one, other in zip(steps_of(first), steps_of(second), strict=True):
            lengths = [
                of.chosen.length[step.first : step.stop]
                for of, step in ((first, one), (second, other))
                if of.chosen.length is not None
            ]
            assert abs(lengths[0].size - lengths[1].size) <= 1
            assert abs(int(lengths[0].sum()) - int(lengths[1].sum())) <= lengths[0].max()


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_the_global_batches_stay_the_same(data: Data, world_size: int) -> None:
    """The same bounds, and each example on one rank; only the rank may differ."""
    costs = np.arange(100) ** 2
    shares = [chunks(batches_of(data, rank, world_size, costs)) for rank in range(world_size)]
    whole = chunks(batches_of(data, 0, 1, None))
    for number, expected in enumerate(whole):
        of_ranks = [share[number] for share in shares]
        assert all(np.array_equal(of.bounds, expected.bounds) for of in of_ranks)
        positions = np.concatenate([of.chosen.position for of in of_ranks])
        assert sorted(positions.tolist()) == expected.chosen.position.tolist()


def test_training_resumes_with_the_same_shares(data: Data) -> None:
    """From every step: the shares of a batch do not depend on earlier ones."""
    costs = np.arange(100) ** 2
    batches = batches_of(data, 1, 3, costs)
    steps = [
        (step, of.chosen.position[step.first : step.stop].tolist()) for of in chunks(batches) for step in steps_of(of)
    ]
    assert any(position for _, position in steps)
    for number, (step, _) in enumerate(steps):
        again = [
            of.chosen.position[after.first : after.stop].tolist()
            for of in chunks(batches, step.before)
            for after in steps_of(of)
        ]
        assert again == [position for _, position in steps[number:]]


def steps_of(chunk: Chunk) -> list[Any]:
    return [step for block in chunk.blocks(1 << 20) for step in block.steps]
