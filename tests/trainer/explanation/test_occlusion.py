"""Occlusion equals deleting each event by hand and scoring again, the way Shoal scores a history."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.ranking.reach import reach_of
from tests.support.explained_models import FORMS, Case, case_of
from tests.trainer.explanation.conftest import Datasets
from trainer.data.stream.columns import Column, take_all
from trainer.data.stream.impressions import gather_impressions, ranking_batch
from trainer.data.stream.packed import PackedHistories, PackedImpressions
from trainer.explanation import occlusion
from trainer.explanation.explained import score
from trainer.inference.next_item import score as score_pairs
from trainer.inference.requests import with_requests


def cut(case: Case, number: int, without: int | None) -> PackedHistories:
    """Return the events of a question as packed histories of one row, without one of them."""
    end = case.packed.starts[case.rows[number]] + case.low[number]
    events = np.arange(end - case.asked.lengths[number], end)
    if without is not None:
        events = np.delete(events, without)
    packed = case.packed
    one = np.zeros(1, np.int64)
    return PackedHistories(
        packed.items[events],
        one,
        np.asarray([events.size]),
        one,
        one,
        pa.array(["user"]),
        None if packed.times is None else packed.times[events],
        take_all(packed.features, events),
        take_all(packed.user_features, case.rows[[number]]),
    )


def score_of_shoal(case: Case, number: int, without: int | None = None) -> float:
    """Return the score of one question by the functions that recommend."""
    packed, asked, trained = cut(case, number, without), case.asked, case.model.trained
    offsets = np.asarray([0, packed.items.size])
    if trained.manifest.task == "next_item":
        at = None if asked.requested_at is None else asked.requested_at[[number]]
        given = with_requests(
            packed.users, offsets, packed.items, packed.times, packed.features, packed.user_features, at
        )
        value = float(score_pairs(trained, given, np.zeros(1, np.int64), asked.targets[[number]])[0])
        return 0.0 if np.isnan(value) else value
    features: dict[str, Column] = take_all(asked.target_features, np.asarray([number]))
    one = np.zeros(1, np.int64)
    assert asked.requested_at is not None
    shown = PackedImpressions(
        asked.targets[[number]].astype(np.int32),
        asked.requested_at[[number]],
        np.asarray([packed.items.size]),
        {},
        features,
        one,
        one + 1,
    )
    reach = reach_of(trained.model.config)
    gathered = gather_impressions(replace(packed, impressions=shown), one, one, one + 1, one, reach)
    earlier = None if asked.earlier is None else asked.earlier.sliced(number, number + 1)
    batch = ranking_batch(replace(gathered, earlier=earlier), trained.catalogue, reach)
    with torch.no_grad():
        logits = trained.model.logits(trained.look_up(batch.items), batch)
    return float(logits[0, 0])


@pytest.mark.parametrize("form", FORMS)
def test_occlusion_is_deleting_and_scoring_again(form: str, explained_datasets: Datasets) -> None:
    case = case_of(form, *explained_datasets, max_history=7)
    attribution = occlusion.attribute(case.model, case.asked, internal_batch_size=40)
    # From the longest history, which comes first, to the empty one, which is the last.
    numbers = [*range(0, case.asked.size, 3), case.asked.size - 1]
    scores = {number: score_of_shoal(case, number) for number in numbers}
    expected = list(scores.values())
    spread = float(np.std(expected))
    np.testing.assert_allclose(attribution.scores[numbers], expected, rtol=1e-4, atol=1e-4 * spread)
    assert case.asked.lengths[0] == case.asked.lengths.max() == case.model.max_events
    assert case.asked.lengths[-1] == 0
    for number in numbers[::4]:
        falls = [scores[number] - score_of_shoal(case, number, place) for place in range(case.asked.lengths[number])]
        np.testing.assert_allclose(attribution.of(number), falls, rtol=1e-3, atol=1e-4 * spread)


def test_scores_do_not_depend_on_the_internal_batch_size(explained_datasets: Datasets) -> None:
    case = case_of("encoder: hstu", *explained_datasets, max_history=7)
    np.testing.assert_allclose(
        score(case.model, case.asked, 1), score(case.model, case.asked, 10_000), rtol=1e-5, atol=1e-6
    )
