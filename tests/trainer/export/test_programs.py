"""The program of an export equals its model, for every form of encoder and ranker, and for one history as for many."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.config import NextItemConfig
from models.ranking.config import RankingConfig
from models.ranking.reach import reach_of
from tests.contracts.test_score_invariance import MAX_HISTORY, NARROW, NUM_DAYS, RANKERS, Ranker, Recommender
from tests.support.grown_datasets import DAY, events_dataset, ranking_dataset
from tests.trainer.inference.test_live_history import FORMS, trained_model
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import TimeBounds
from trainer.data.stream.packed import PackedHistories, joined
from trainer.export import run_program
from trainer.export.build import program_of, weights_of
from trainer.export.inputs import Form
from trainer.export.run_program import Run
from trainer.export.trace import example_inputs, trace
from trainer.export.write import form_of
from trainer.global_batch.dynamic_ids import DynamicTables
from trainer.inference.next_item import user_vectors
from trainer.inference.ranking import probabilities
from trainer.inference.requests import Histories
from trainer.inference.trained_model import TrainedModel

# Traced too. The others are covered by the same program without tracing, which takes a tenth of the time.
TRACED = (
    "hstu",
    "two_tower",
    "masked items, times",
    "HSTU, sparse, several heads",
    "truncated below two blocks",
    "merged events",
    "merged by a transformer",
)
TRACED_RANKERS = ("din", "LiGR, sparse", "SIM over two blocks", "SIM by category")


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder, end = tmp_path_factory.mktemp("events"), NUM_DAYS * DAY
    return folder, events_dataset(folder, num_days=NUM_DAYS, cuts=TimeBounds(end * 2 // 3, end * 5 // 6))


@pytest.fixture(scope="module")
def impressions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("impressions")
    return folder, ranking_dataset(folder, num_days=NUM_DAYS)


def program_run(trained: TrainedModel, is_traced: bool) -> tuple[Run, Form, tuple[str, ...]]:
    form, is_ranker = form_of(trained), trained.manifest.task == "ranking"
    program = program_of(trained, weights_of(trained), "float32")
    run = run_program.callable_of(trace(program, form, is_ranker)) if is_traced else program
    return run, form, tuple(example_inputs(form, is_ranker))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.01
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", FORMS)
def test_a_program_has_the_user_vectors_of_its_model(histories: tuple[Path, Manifest], name: str) -> None:
    given: dict[str, Any] = {"max_history": 9, "inputs": {}, **FORMS[name]}
    given["inputs"] = {"time_unit": "seconds", **given["inputs"]}
    trained = trained_model(Recommender(*histories, NextItemConfig.model_validate(given)))
    run, form, names = program_run(trained, name in TRACED)
    packed = joined(list(Recommender(*histories, trained.model.config).reader.read(range(3)).values()))
    lengths = packed.ends - packed.starts - 1
    expected = user_vectors(trained, Histories(packed, lengths, 0))
    assert_close(run_program.user_vectors(run, names, form, packed, lengths, trained.model.width), expected)
    some = np.argsort(-lengths)[:3]
    for row in some:  # alone
        alone = np.where(np.arange(lengths.size) == row, lengths, 0)
        actual = run_program.user_vectors(run, names, form, packed, alone, trained.model.width)
        assert_close(actual[row], expected[row])


def packed_impressions(ranker: Ranker) -> PackedHistories:
    return joined(list(ranker.reader.read(range(len(ranker.reader.group_rows))).values()))


@pytest.mark.slow
@pytest.mark.parametrize("name", RANKERS)
def test_a_program_has_the_probabilities_of_its_ranker(impressions: tuple[Path, Manifest], name: str) -> None:
    given: dict[str, Any] = {"max_history": MAX_HISTORY, "inputs": {}, **NARROW, **RANKERS[name]}
    given["inputs"] = {"time_unit": "seconds", **given["inputs"]}
    ranker = Ranker(*impressions, RankingConfig.model_validate(given))
    catalogue, nothing = ranker.catalogue, SimpleNamespace()
    dynamic = DynamicTables({}, catalogue.features, 1, catalogue.inputs)
    trained = TrainedModel(nothing, ranker.manifest, nothing, ranker.model.float().eval(), catalogue, dynamic)  # type: ignore[arg-type]
    run, form, names = program_run(trained, name in TRACED_RANKERS)
    assert form.receptive == reach_of(ranker.config).receptive
    packed = packed_impressions(ranker)
    expected = torch.from_numpy(np.stack(list(probabilities(trained, packed).values()), axis=1))
    actual = run_program.logits(run, names, form, packed, expected.shape[1]).sigmoid()
    # A sigmoid of large logits has the rounding of these logits.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=3e-5)
    assert expected.std() > 0.01
