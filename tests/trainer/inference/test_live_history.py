"""A history that grows has the vector of a full pass after each event, for every form of encoder."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.config import NextItemConfig
from tests.contracts.test_score_invariance import ENCODERS, NUM_DAYS, Recommender
from tests.support.grown_datasets import DAY, events_dataset
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import TimeBounds
from trainer.data.stream.columns import sliced
from trainer.data.stream.packed import PackedHistories
from trainer.global_batch.dynamic_ids import DynamicTables
from trainer.inference.live_history import LiveHistory
from trainer.inference.next_item import user_vectors
from trainer.inference.requests import Histories, with_requests
from trainer.inference.trained_model import TrainedModel

LONGEST = 9  # shorter than the history below, so that its last events are beyond it
FORMS = {
    **ENCODERS,
    "SASRec in a window": {"encoder": {"num_blocks": 3, "attention": {"window": 3}}},
    "HSTU, sparse, several heads": {
        "encoder": {"kind": "hstu", "attention": {"num_heads": 2, "normalisation": "entmax15"}}
    },
}


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder, end = tmp_path_factory.mktemp("events"), NUM_DAYS * DAY
    return folder, events_dataset(folder, num_days=NUM_DAYS, cuts=TimeBounds(end * 2 // 3, end * 5 // 6))


def trained_model(recommender: Recommender) -> TrainedModel:
    """Return the model of a test, in single precision, without a checkpoint."""
    catalogue = recommender.catalogue
    dynamic = DynamicTables({}, catalogue.features, 1, catalogue.inputs)
    nothing: Any = SimpleNamespace()
    return TrainedModel(nothing, recommender.manifest, nothing, recommender.model.float(), catalogue, dynamic)


def longest_row(recommender: Recommender) -> tuple[PackedHistories, int]:
    """Return the packed row group and the row with most events."""
    packed = max(
        recommender.reader.read(range(len(recommender.reader.group_rows))).values(),
        key=lambda packed: int((packed.ends - packed.starts).max()),
    )
    return packed, int((packed.ends - packed.starts).argmax())


def part(packed: PackedHistories, row: int, first: int, last: int, at: int | None) -> Histories:
    """Return some events of a row as a history."""
    start, stop = int(packed.starts[row]) + first, int(packed.starts[row]) + last
    return with_requests(
        pa.array(["user"]),
        np.asarray([0, stop - start]),
        packed.items[start:stop].astype(np.int64),
        None if packed.times is None else packed.times[start:stop],
        {name: sliced(column, start, stop) for name, column in packed.features.items()},
        {name: sliced(column, row, row + 1) for name, column in packed.user_features.items()},
        at,
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_history_that_grows_has_the_vector_of_a_full_pass(histories: tuple[Path, Manifest], form: str) -> None:
    given: dict[str, Any] = {"max_history": LONGEST, "inputs": {}, **FORMS[form]}
    given["inputs"] = {"time_unit": "seconds", **given["inputs"]}
    trained = trained_model(Recommender(*histories, NextItemConfig.model_validate(given)))
    packed, row = longest_row(Recommender(*histories, NextItemConfig.model_validate(given)))
    times = None if packed.times is None else packed.times[packed.starts[row] : packed.ends[row]]
    live = LiveHistory(trained, part(packed, row, 0, 2, None))
    kept = []
    for number in range(3, LONGEST + 4):
        at = None if times is None else int(times[number])
        live.append(part(packed, row, number - 1, number, None))
        expected = user_vectors(trained, part(packed, row, 0, number, at))[0]
        actual = live.vector(at)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        kept.append(live.num_kept)
    growing = [number - 1 for number in range(3, LONGEST + 1)]
    keeps = trained.model.can_continue
    assert kept == [*(growing if keeps else [0] * len(growing)), 0, 0, 0]


def test_a_request_may_be_repeated_at_another_time(histories: tuple[Path, Manifest]) -> None:
    given = NextItemConfig.model_validate(
        {"max_history": LONGEST, "encoder": {"kind": "hstu"}, "inputs": {"request_time": True, "time_unit": "seconds"}}
    )
    trained = trained_model(Recommender(*histories, given))
    packed, row = longest_row(Recommender(*histories, given))
    assert packed.times is not None
    last = int(packed.times[packed.starts[row] + 4])
    live = LiveHistory(trained, part(packed, row, 0, 5, None))
    soon, late = (live.vector(last + wait) for wait in (0, 40 * DAY))
    assert (soon - late).abs().max() > 1e-4
    for wait, actual in ((0, soon), (40 * DAY, late)):
        expected = user_vectors(trained, part(packed, row, 0, 5, last + wait))[0]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_older_events_are_refused(histories: tuple[Path, Manifest]) -> None:
    given = NextItemConfig.model_validate(
        {"max_history": LONGEST, "encoder": {"kind": "hstu"}, "inputs": {"time_unit": "seconds"}}
    )
    trained = trained_model(Recommender(*histories, given))
    packed, row = longest_row(Recommender(*histories, given))
    live = LiveHistory(trained, part(packed, row, 3, 5, None))
    with pytest.raises(ValueError, match="in the order of their times"):
        live.append(part(packed, row, 0, 1, None))
