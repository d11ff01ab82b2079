"""Rows for the raw ids of a batch, and the count of uses, compared with a loop over items and events."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.batches.history_batch import HistoryBatch, build_batch, with_inputs, with_negatives
from models.features.catalogue import Catalogue, IdColumn
from models.features.composer import ItemComposer
from models.features.inputs import ModelInputs
from models.features.values import InputFeature
from sharding.config import DynamicIdsConfig, TableConfig
from sharding.dynamic_ids.id_counts import count_ids
from sharding.dynamic_ids.mapping import observe
from sharding.dynamic_ids.state import DynamicIdsState
from sharding.world import World
from tests.models.ranking import test_model as ranking
from trainer.data.dataset.features import MISSING
from trainer.global_batch.dynamic_ids import DynamicTables, uses_of

NUM_KNOWN, NUM_IDS, WIDTH = 20, 24, 4
NOTHING = np.zeros(0, np.int64)
TABLES = {
    "item": TableConfig(dim=WIDTH),
    "label": TableConfig(dim=WIDTH, ids=DynamicIdsConfig(num_rows=6, admit_after=2, max_age_steps=1, max_candidates=8)),
}
FEATURES = (InputFeature("brand", "label", WIDTH), InputFeature("tags", "label", WIDTH))
INPUTS = ModelInputs((InputFeature("word", "label", WIDTH, MISSING),), (InputFeature("like", "label", WIDTH, MISSING),))
POOL = [-(2**62), -3, 0, 7, 10**15, 2**63 - 1, MISSING, 11, 12, 13]


def lists_of(seed: int) -> list[list[int]]:
    """Return values of every item: one or none at seed 0, else several, repeats among them."""
    random = np.random.default_rng(seed)
    return [random.choice(POOL, size=random.integers(0, 2 if seed == 0 else 5)).tolist() for _ in range(NUM_IDS)]


def catalogue() -> Catalogue:
    columns = {}
    for seed, feature in enumerate(FEATURES):
        lists = lists_of(seed)
        offsets = np.concatenate(([0], np.cumsum([len(entry) for entry in lists])))
        columns[feature.name] = IdColumn(np.asarray([v for entry in lists for v in entry], np.int64), offsets)
    return Catalogue(
        NUM_KNOWN,
        NUM_IDS,
        rows=np.where(np.arange(NUM_IDS) < NUM_KNOWN, np.arange(NUM_IDS), 0),
        has_row=np.arange(NUM_IDS) < NUM_KNOWN,
        features=FEATURES,
        columns=columns,
    )


CATALOGUE = catalogue()


def packed(histories: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, offsets, inputs and targets. Each history's last event is a target only."""
    offsets = np.concatenate(([0], np.cumsum([max(0, len(history) - 1) for history in histories])))
    inputs = np.asarray([item for history in histories for item in history[:-1]], np.int64)
    targets = np.asarray([item for history in histories for item in history[1:]], np.int64)
    return np.arange(len(histories)), offsets, inputs, targets


def batch_of(histories: list[list[int]], whole_catalogue: bool = False) -> HistoryBatch:
    negatives = NOTHING if whole_catalogue else np.asarray([3, 5, 8])
    return build_batch(*packed(histories), negatives, CATALOGUE, whole_catalogue=whole_catalogue)


def histories(seed: int, num_ids: int = NUM_KNOWN) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [[], *(random.integers(0, num_ids, size=random.integers(2, 7)).tolist() for _ in range(6)), []]


def rows_by_id(state: DynamicIdsState) -> dict[int, int]:
    used = state.entries.used(with_row=True)
    return dict(zip(state.entries.ids[used].tolist(), state.entries.rows[used].tolist(), strict=True))


def uses(batch: HistoryBatch) -> Counter[int]:
    seen = uses_of(batch, "label", [("values", feature.name) for feature in FEATURES])
    assert np.all(np.diff(seen.ids) > 0)
    return Counter(dict(zip(seen.ids.tolist(), seen.counts.tolist(), strict=True)))


def naive_uses(batches: list[list[int]]) -> Counter[int]:
    lists = [lists_of(seed) for seed in range(len(FEATURES))]
    values = [value for history in batches for item in history for column in lists for value in column[item]]
    return Counter(value for value in values if value != MISSING)


@pytest.mark.parametrize("whole_catalogue", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_each_event_uses_the_values_of_its_item_once(seed: int, whole_catalogue: bool) -> None:
    """Whatever else is looked up: negatives, or the whole catalogue."""
    # Item 0 is no item that could be learned, so as the last event of a history it would not be in the batch.
    chosen = [[*history[:-1], max(1, history[-1])] if history else [] for history in histories(seed)]
    assert uses(batch_of(chosen, whole_catalogue)) == naive_uses(chosen)
    assert naive_uses(chosen)


def told_batch(chosen: list[list[int]], words: list[list[int]], likes: list[int]) -> HistoryBatch:
    """Return a batch with `words` of each input event and `likes` of each history."""
    told = replace(CATALOGUE, inputs=INPUTS)
    offsets = np.concatenate(([0], np.cumsum([len(entry) for entry in words])))
    word = IdColumn(np.asarray([value for entry in words for value in entry], np.int64), offsets)
    return with_inputs(batch_of(chosen), told, {"word": word}, {"like": np.asarray(likes, np.int64)}, None, None)


@pytest.mark.parametrize("seed", range(4))
def test_input_events_use_their_values_and_histories_with_events_those_of_their_user(seed: int) -> None:
    random = np.random.default_rng(seed)
    chosen = [[*history[:-1], max(1, history[-1])] if history else [] for history in histories(seed)]
    inputs = [history[:-1] for history in chosen]
    words = [random.choice(POOL, size=random.integers(0, 4)).tolist() for history in inputs for _ in history]
    likes = random.choice(POOL, size=len(chosen)).tolist()
    asked = [("values", "brand"), ("values", "tags"), ("events", "word"), ("users", "like")]
    batch = told_batch(chosen, words, likes)
    seen = uses_of(batch, "label", asked)
    assert np.all(np.diff(seen.ids) > 0)
    expected = naive_uses(chosen)
    expected.update(value for entry in words for value in entry if value != MISSING)
    expected.update(like for like, history in zip(likes, inputs, strict=True) if history and like != MISSING)
    assert dict(zip(seen.ids.tolist(), seen.counts.tolist(), strict=True)) == expected

    tables = DynamicTables(TABLES, FEATURES, 1, INPUTS)
    observe(tables.states["label"], count_ids(np.repeat(seen.ids, seen.counts)))
    state = tables.states["label"]
    row_of = rows_by_id(state)
    mapped = tables.rows_of(batch.items)
    for (owner, name), raw in (((o, n), getattr(batch.items, o)[n]) for o, n in asked):
        before = batch.items.rows["label"][raw.index].tolist()
        after = mapped.rows["label"][getattr(mapped, owner)[name].index].tolist()
        assert after == [row_of.get(value, 0) for value in before]
    assert len(set(mapped.rows["label"].tolist())) == mapped.rows["label"].numel()
    alone = tables.rows_of(
        replace(CATALOGUE, inputs=INPUTS).request(np.arange(3))
    )  # items of the catalogue, and no events
    assert alone.events == alone.users == {}


def test_uses_of_shares_add_up_to_those_of_the_whole() -> None:
    chosen = histories(9)
    whole = uses(batch_of(chosen))
    for world_size in (2, 3, 8):
        shares = [uses(batch_of(chosen[rank::world_size] or [[]])) for rank in range(world_size)]
        assert sum(shares, Counter()) == whole


def test_a_target_that_is_not_learned_is_used_where_it_is_an_input_only() -> None:
    """The training part does not know the items from NUM_KNOWN on."""
    new = NUM_KNOWN + 1
    assert uses(batch_of([[1, new, 2]])) == naive_uses([[1, new, 2]])
    assert uses(batch_of([[1, 2, new]])) == naive_uses([[1, 2]])


@pytest.mark.parametrize("seed", range(3))
def test_negatives_added_later_do_not_count_as_uses(seed: int) -> None:
    chosen = histories(seed)
    plain = build_batch(*packed(chosen), NOTHING, CATALOGUE, whole_catalogue=False)
    assert uses(with_negatives(plain, np.asarray([3, 5, 8, 3, 19]), CATALOGUE)) == uses(plain)


@pytest.mark.parametrize("whole_catalogue", [False, True])
def test_a_masked_event_uses_the_values_of_its_item_once(whole_catalogue: bool) -> None:
    chosen = [[1 + item % (NUM_KNOWN - 1) for item in history] for history in histories(4)]
    items = np.asarray([item for history in chosen for item in history], np.int64)
    masked = np.arange(items.size) % 3 == 1
    offsets = np.concatenate(([0], np.cumsum([len(history) for history in chosen])))
    inputs, targets = np.where(masked, 0, items), np.where(masked, items, 0)
    batch = build_batch(np.arange(len(chosen)), offsets, inputs, targets, NOTHING, CATALOGUE, whole_catalogue)
    assert uses(replace(batch, masked=torch.from_numpy(masked))) == naive_uses(chosen)


def tables_that_saw(*batches: list[int]) -> DynamicTables:
    tables = DynamicTables(TABLES, FEATURES, seed=1)
    for batch in batches:
        observe(tables.states["label"], count_ids(np.asarray(batch, np.int64)))
    return tables


@pytest.mark.parametrize("seen", [[], [7, 7], [7, 7, -3, -3, 11, 11, 12, 12, 13, 13, 0, 0]], ids=str)
def test_items_sum_the_rows_of_their_values(seen: list[int]) -> None:
    tables = tables_that_saw(seen)
    state = tables.states["label"]
    row_of = rows_by_id(state)
    assert len(row_of) == min(5, len(set(seen)))
    asked = np.asarray([0, 2, 3, 7, 11, 15, 19, 20, 23])
    request = CATALOGUE.request(asked)
    raw = request.rows["label"].clone()
    mapped = tables.rows_of(request)
    rows = mapped.rows["label"].tolist()
    assert len(set(rows)) == len(rows)
    assert set(rows) == {row_of.get(value, 0) for value in raw.tolist()}
    assert torch.equal(
        request.rows["label"], raw
    )  # the request may be that of the whole catalogue, used again and again

    random = torch.Generator().manual_seed(1)
    weights = {
        "item": torch.randn(NUM_KNOWN, WIDTH, generator=random),
        "label": torch.randn(6, WIDTH, generator=random),
    }
    actual = ItemComposer(WIDTH, FEATURES)({name: weights[name][mapped.rows[name]] for name in weights}, mapped)
    for item, vector in zip(asked.tolist(), actual, strict=True):
        expected = weights["item"][item] if item < NUM_KNOWN else torch.zeros(WIDTH)
        for seed in range(len(FEATURES)):
            values = lists_of(seed)[item]
            if values:
                expected = expected + torch.stack([weights["label"][row_of.get(v, 0)] for v in values]).mean(dim=0)
        torch.testing.assert_close(vector, expected)


def test_a_look_up_does_not_change_the_mappings() -> None:
    tables = tables_that_saw([7, 7, 11], [12, 12])
    before = {name: tensor.clone() for name, tensor in tables.tensors().items()}
    tables.rows_of(CATALOGUE.known)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tables.tensors().items())


def test_mappings_are_restored_from_their_tensors() -> None:
    first, then = [7, 7, 11, 12], [11, 12, 13, 13, -3, -3]
    one = tables_that_saw(first)
    other = DynamicTables(TABLES, FEATURES, seed=1)
    other.load({name: tensor.clone() for name, tensor in one.tensors().items()})
    for tables in (one, other):
        observe(tables.states["label"], count_ids(np.asarray(then, np.int64)))
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def look_up_on_ranks(world: World, saved: dict[str, torch.Tensor]) -> list[list[tuple[int, int]]]:
    """Look up the items of a request, none, and a request without the table; return pairs of item and row."""
    tables = DynamicTables(TABLES, FEATURES, seed=1, world=world)
    tables.load(saved)
    answers = []
    for items in (np.arange(NUM_IDS), np.arange(0 if world.rank else NUM_IDS), np.arange(5 * world.rank)):
        request = CATALOGUE.request(items)
        if items.size == 5:
            rows = {name: rows for name, rows in request.rows.items() if name != "label"}
            tables.rows_of(replace(request, rows=rows))
            continue
        raw = request.rows["label"].tolist()
        mapped = tables.rows_of(request)
        rows_of = mapped.rows["label"]
        for name in ("brand", "tags"):
            before = [raw[place] for place in request.values[name].index.tolist()]
            after = rows_of[mapped.values[name].index].tolist()
            answers.append(sorted(set(zip(before, after, strict=True))))
    return answers


def test_ranks_may_look_up_different_items_or_none(rank_pool) -> None:
    one = tables_that_saw([7, 7, -3, -3, 11, 11], [12, 12, 13])
    row_of = rows_by_id(one.states["label"])
    saved = one.tensors()
    for rank, answers in enumerate(rank_pool.run(3, look_up_on_ranks, saved)):
        assert len(answers) == (4 if rank == 1 else 6)
        for pairs in answers:
            assert pairs == [(raw, row_of.get(raw, 0)) for raw, _ in pairs]
        assert {raw for raw, _ in answers[1]} >= {7, 11, 12}
        assert bool(answers[2]) == (rank == 0)


def test_nothing_changes_without_dynamic_tables() -> None:
    tables = DynamicTables({"item": TABLES["item"]}, (), seed=1)
    request = Catalogue(5, 5).request(np.arange(3))
    assert tables.rows_of(request) is request
    assert tables.tensors() == {}
    assert tables.report() == {}


def test_in_ranking_events_and_impressions_are_uses():
    users = ranking.random_users()
    batch = ranking.batch_of(users)
    tabs = [tab for user in users for _, _, tab, *_ in (*user.events, *user.shown) if tab != 0]
    seen = uses_of(batch, "tab", [("events", "tab"), ("candidates", "tab")])
    assert dict(zip(seen.ids.tolist(), seen.counts.tolist(), strict=True)) == Counter(tabs)
    tags = [item % 5 + 1 for user in users for item, *_ in (*user.events, *user.shown)]
    seen = uses_of(batch, "tag", [("values", "tag")])
    assert dict(zip(seen.ids.tolist(), seen.counts.tolist(), strict=True)) == Counter(tags)
