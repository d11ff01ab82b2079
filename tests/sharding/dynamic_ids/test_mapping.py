"""Dynamic ids of one rank equal a plain dict of the same rules over random and adversarial streams."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from sharding.config import DynamicIdsConfig
from sharding.dynamic_ids.id_counts import count_ids
from sharding.dynamic_ids.mapping import Changes, observe
from sharding.dynamic_ids.saved import from_tensors, state_tensors
from sharding.dynamic_ids.state import DynamicIdsState, look_up, new_state
from tests.sharding.dynamic_ids.dict_ids import DictIds

INT64 = np.iinfo(np.int64)
STEPS = 60


def skewed(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Return Zipf-like ids with drifting favourites, spread over all of int64."""
    for step in range(STEPS):
        ranks = (rng.pareto(0.7, rng.integers(0, 80)) * 3).astype(np.int64) + step // 4
        yield ranks * np.int64(0x1E3779B97F4A7C15)


def all_new(rng: np.random.Generator) -> Iterator[np.ndarray]:
    for step in range(STEPS):
        yield np.repeat(np.arange(20) + 20 * step - 400, rng.integers(1, 4, 20))


def crowded(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield batches with more distinct ids than the table and the candidates have places."""
    for _ in range(STEPS):
        yield rng.integers(-300, 300, rng.choice([0, 5, 40, 400]))


def returning(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield groups that leave and come back, so that ids are evicted and admitted over and over."""
    for step in range(STEPS):
        yield np.concatenate((np.arange(14) + 14 * (step // 2 % 4), rng.integers(0, 56, 3)))


def extremes(rng: np.random.Generator) -> Iterator[np.ndarray]:
    edges = np.asarray([INT64.min, INT64.min + 1, -2, -1, 0, 1, INT64.max - 1, INT64.max])
    powers = np.left_shift(np.int64(1), np.arange(64))
    for _ in range(STEPS):
        yield rng.choice(np.concatenate((edges, powers, -powers)), 30)


STREAMS = [skewed, all_new, crowded, returning, extremes]
CONFIGS = [
    DynamicIdsConfig(num_rows=33, admit_after=2, evict="age", max_age_steps=1, max_candidates=40),
    DynamicIdsConfig(num_rows=40, admit_after=3, evict="age", max_age_steps=5, max_candidates=25),
    DynamicIdsConfig(num_rows=33, admit_after=2, evict="use", half_life_steps=3, max_candidates=40),
    DynamicIdsConfig(num_rows=50, admit_after=4, evict="use", half_life_steps=20, max_candidates=17),
    DynamicIdsConfig(num_rows=2, admit_after=1, evict="age", max_age_steps=2, max_candidates=1),
    DynamicIdsConfig(num_rows=5, admit_after=1, evict="use", half_life_steps=1, max_candidates=3),
    DynamicIdsConfig(num_rows=200, admit_after=2, evict="use", half_life_steps=7, max_candidates=150),
    DynamicIdsConfig(num_rows=5000, admit_after=2, max_candidates=5000),
]
EVERY_CASE = [
    pytest.param(stream, config, id=f"{stream.__name__}-{i}") for stream in STREAMS for i, config in enumerate(CONFIGS)
]


def batches(stream: object, seed: int = 5) -> list[np.ndarray]:
    return list(stream(np.random.default_rng(seed)))  # type: ignore[operator]


def plain(changes: Changes) -> dict[str, object]:
    return {name: np.asarray(value).tolist() for name, value in dataclasses.asdict(changes).items()}


def snapshot(state: DynamicIdsState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state_tensors(state).items()}


def content(config: DynamicIdsConfig, tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    """Return the meaning of saved tensors. Earlier versions had other places of candidates, and another order of queues."""
    ids, counts, last_used = (tensors[name].tolist() for name in ("ids", "counts", "last_used"))
    held = {
        ids[place]: (place if place < config.num_rows else None, counts[place], last_used[place])
        for place in range(len(ids))
        if counts[place]
    }
    step, rows_used, num_free, *marks = tensors["numbers"].tolist()
    queues = []
    for name, (head, end, swept_at) in (("row_queue", marks[:3]), ("candidate_queue", marks[3:])):
        queued = tensors[name].tolist()[head:end]
        queues.append({ids[place] for place in queued if last_used[place] < swept_at})
        queues.append(swept_at)
    return {
        "held": held,
        "generations": tensors["generations"].tolist(),
        "numbers": (step, rows_used, num_free),
        "queues": queues,
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("stream", "config"), EVERY_CASE)
def test_equals_the_dict_reference_at_every_step(stream, config):
    state, reference, ever = new_state(config), DictIds(config), set()
    for batch in batches(stream):
        changes = observe(state, count_ids(batch))
        reference.observe(batch.tolist())
        ever.update(batch.tolist())
        asked = np.asarray(sorted({*ever, 12345, INT64.min, INT64.max}), np.int64)
        actual = look_up(state, asked)
        assert actual.rows.tolist() == reference.look_up(asked.tolist())
        assert actual.num_unknown == actual.rows.tolist().count(0)
        evicted = list(zip(changes.evicted_ids.tolist(), changes.evicted_rows.tolist(), strict=True))
        admitted = list(zip(changes.admitted_ids.tolist(), changes.rows.tolist(), strict=True))
        assert (evicted, admitted) == (reference.evicted, reference.admitted)
        assert changes.generations.tolist() == [reference.generations[row] for row in changes.rows.tolist()]
        assert (changes.num_waiting, changes.num_forgotten, changes.num_uncounted) == (
            reference.num_waiting,
            reference.num_forgotten,
            reference.num_uncounted,
        )
        assert (state.num_admitted, state.num_candidates) == (len(reference.rows), len(reference.candidates))


@pytest.mark.parametrize(("stream", "config"), EVERY_CASE)
def test_invariants_hold_at_every_step(stream, config):
    state, rows_of, ever = new_state(config), {}, set()
    num_bytes = state.entries.num_bytes
    for batch in batches(stream, seed=6):
        before = {id_: rows_of.get(id_, 0) for id_ in batch.tolist()}
        changes = observe(state, count_ids(batch))
        ever.update(batch.tolist())
        # What changed is exactly what is reported: replaying the changes gives every id's row.
        for id_, row in zip(changes.evicted_ids.tolist(), changes.evicted_rows.tolist(), strict=True):
            assert rows_of.pop(id_) == row
        for id_, row in zip(changes.admitted_ids.tolist(), changes.rows.tolist(), strict=True):
            assert id_ not in rows_of
            rows_of[id_] = row
        asked = np.asarray(sorted(ever), np.int64)
        assert look_up(state, asked).rows.tolist() == [rows_of.get(id_, 0) for id_ in asked.tolist()]
        assert len(set(rows_of.values())) == len(rows_of) == state.num_admitted
        assert all(1 <= row < config.num_rows for row in rows_of.values())
        assert set(changes.evicted_rows.tolist()) <= set(changes.rows.tolist())
        # No id of the batch lost its row in that batch.
        assert all(rows_of.get(id_) == row for id_, row in before.items() if row)
        assert num_bytes == state.entries.num_bytes


@pytest.mark.parametrize("config", CONFIGS[:4], ids=str)
def test_the_order_of_ids_in_a_batch_does_not_matter(config):
    rng = np.random.default_rng(1)
    one, other = new_state(config), new_state(config)
    for batch in batches(skewed):
        assert plain(observe(one, count_ids(batch))) == plain(observe(other, count_ids(rng.permutation(batch))))
    assert same(state_tensors(one), state_tensors(other))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_reload_at_any_step_continues_bit_for_bit(config):
    run = batches(skewed)[:30]
    whole, changes, saved = new_state(config), [], []
    for batch in run:
        saved.append(snapshot(whole))
        changes.append(plain(observe(whole, count_ids(batch))))
    for step, tensors in enumerate(saved):
        state = from_tensors(config, tensors)
        assert same(state_tensors(state), tensors)
        assert [plain(observe(state, count_ids(batch))) for batch in run[step:]] == changes[step:]
        assert same(state_tensors(state), state_tensors(whole))


def test_looking_up_changes_nothing_and_counts_the_unknown():
    state = new_state(CONFIGS[0])
    observe(state, count_ids(np.asarray([7, 7, 9], np.int64)))
    before = snapshot(state)
    actual = look_up(state, np.asarray([7, 9, 7, -1, 9], np.int64))
    assert actual.rows.tolist() == [1, 0, 1, 0, 0]
    assert actual.num_unknown == 3
    assert look_up(state, np.empty(0, np.int64)).num_unknown == 0
    assert same(before, state_tensors(state))


def test_an_id_keeps_its_row_for_max_age_steps():
    state = new_state(DynamicIdsConfig(num_rows=2, admit_after=1, evict="age", max_age_steps=3, max_candidates=4))
    owners = []
    for id_ in (10, 11, 11, 11, 10):
        changes = observe(state, count_ids(np.asarray([id_], np.int64)))
        owners.append((changes.admitted_ids.tolist(), changes.num_waiting))
    assert owners == [([10], 0), ([], 1), ([], 1), ([11], 0), ([], 1)]


def test_a_state_of_another_size_is_refused():
    tensors = state_tensors(new_state(CONFIGS[0]))
    with pytest.raises(ValueError, match="num_rows and max_candidates"):
        from_tensors(CONFIGS[1], tensors)


@pytest.mark.parametrize(
    "wrong", [{"num_rows": 1}, {"num_rows": 9, "admit_after": 0}, {"num_rows": 9, "evict": "fifo"}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        DynamicIdsConfig(**wrong)
