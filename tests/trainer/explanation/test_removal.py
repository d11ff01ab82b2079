"""The three meanings of removing an event: deleted, masked, replaced."""

import numpy as np
import torch

from tests.support.explained_models import case_of
from tests.trainer.explanation.conftest import Datasets
from trainer.explanation.removal import draws, remove


def test_deleted_events_close_the_gap_and_keep_times(explained_datasets: Datasets) -> None:
    asked = case_of("encoder: times of events and requests", *explained_datasets, max_history=7).asked
    removed = np.arange(asked.items.size) % 3 == 1
    without = remove(asked, removed)
    assert without.items.tolist() == asked.items[~removed].tolist()
    assert asked.times is not None
    assert without.times is not None
    assert without.times.tolist() == asked.times[~removed].tolist()
    assert without.lengths.tolist() == np.bincount(asked.owner[~removed], minlength=asked.size).tolist()


def test_masked_events_have_a_vector_of_zeros(explained_datasets: Datasets) -> None:
    case = case_of("encoder: times of events and requests", *explained_datasets, max_history=7)
    removed = np.arange(case.asked.items.size) % 3 == 1
    prepared = case.model.prepare(remove(case.asked, removed, "masked"))
    with torch.no_grad():
        vectors, whole = case.model.vectors(prepared), case.model.vectors(case.model.prepare(case.asked))
    assert (vectors[removed] == 0).all()
    torch.testing.assert_close(vectors[~removed], whole[~removed])


def test_replaced_events_come_from_the_pool_and_depend_on_key_and_place_alone(explained_datasets: Datasets) -> None:
    asked = case_of("encoder: times of events and requests", *explained_datasets, max_history=7).asked
    removed = np.arange(asked.items.size) % 2 == 0
    pool = asked.part(3, 5)
    replaced = remove(asked, removed, "replaced", pool, seed=1)
    assert replaced.times is asked.times
    assert replaced.items[~removed].tolist() == asked.items[~removed].tolist()
    assert set(replaced.items[removed].tolist()) <= set(pool.items.tolist())
    price, pool_price = (np.asarray(of.features["price"]) for of in (replaced, pool))
    pairs = set(zip(pool.items.tolist(), pool_price.tolist(), strict=True))
    assert set(zip(replaced.items[removed].tolist(), price[removed].tolist(), strict=True)) <= pairs
    some = np.asarray([6, 2, 6])
    again = remove(
        asked.take(some), removed[np.concatenate([np.flatnonzero(asked.owner == q) for q in some])], "replaced", pool, 1
    )
    assert again.items.tolist() == replaced.take(some).items.tolist()
    assert remove(asked, removed, "replaced", pool, seed=2).items.tolist() != replaced.items.tolist()


def test_draws_are_spread_evenly() -> None:
    counts = np.bincount(draws(np.repeat(np.arange(500), 20), np.tile(np.arange(20), 500), 10, 0), minlength=10)
    assert counts.min() > 900
    assert counts.max() < 1100
