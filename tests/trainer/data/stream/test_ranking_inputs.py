"""The inputs of ranking models: from the files of a dataset to a batch, compared with the rows read plainly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from models.features.config import InputsConfig
from models.ranking.batch import RankingBatch
from models.ranking.config import RankingConfig
from models.ranking.reach import reach_of
from sharding.config import HashIdsConfig, TableConfig
from tests.support.grown_datasets import ranking_dataset
from tests.support.plain_dataset import plain_rows
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.catalogue_reader import columns_for, read_catalogue
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.impressions import ImpressionStream, impression_examples
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader

MAX_HISTORY = 5
HASHED = TableConfig(ids=HashIdsConfig(kind="hash", num_rows=20))
TABLES = {"item": TableConfig(), "place": HASHED, "tags": HASHED}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("ranking")
    return folder, ranking_dataset(folder, num_days=2)


def batches_of(dataset: tuple[Path, Manifest], **inputs: Any) -> tuple[list[RankingBatch], ColumnSelection]:
    folder, manifest = dataset
    config = RankingConfig(inputs=InputsConfig(time_unit="seconds", **inputs), max_history=MAX_HISTORY)
    catalogue = read_catalogue(folder, manifest, TABLES, config)
    wanted = columns_for(catalogue)
    reader = RowGroupReader(
        folder, manifest, ColumnSelection(times=wanted.times, features=wanted.features, impressions=True), 1 << 20
    )
    examples = impression_examples(reader, manifest.counts.train_events, MAX_HISTORY)
    stream = ImpressionStream(reader, GlobalBatches(examples, 7, None, 0, 0, 1), reach_of(config), catalogue)
    return [step.batch for step in stream.steps(Position(0, 0), 1)], wanted


def ids_of(batch: RankingBatch, owners: str, name: str, table: str, count: int) -> list[list[int]]:
    """Return the ids of a feature, of each of `count` owners."""
    values = getattr(batch.items, owners)[name]
    result: list[list[int]] = [[] for _ in range(count)]
    for owner, index in zip(values.owner.tolist(), values.index.tolist(), strict=True):
        result[owner].append(int(batch.items.rows[table][index]))
    return result


def test_candidates_and_events_receive_the_features_of_the_files(dataset):
    """Compare inputs with plain rows: place is one id each (0 is unknown), tags several, price a number, vector some."""
    rows, seen = plain_rows(*dataset), 0
    batches, _ = batches_of(dataset, time=["gap"])
    for batch in batches:
        assert batch.items.candidates.keys() == batch.items.events.keys() == {"place", "tags", "price", "vector"}
        for feature, table in (("place", "place"), ("tags", "tags")):
            actual = ids_of(batch, "candidates", feature, table, batch.num_targets)
            expected = [value for row in rows_of(batch, rows) for value in shown(row, feature)]
            assert actual == [value if isinstance(value, list) else [value] * (value != 0) for value in expected]
        for feature in ("price", "vector"):
            expected = [value for row in rows_of(batch, rows) for value in shown(row, feature)]
            dense = batch.items.candidates[feature].dense
            np.testing.assert_allclose(dense.numpy(), np.asarray(expected, np.float32).reshape(dense.shape))
        users = ids_of(batch, "users", "languages", "tags", batch.num_histories)
        assert users == [row["user.languages"] for row in rows_of(batch, rows)]
        for feature in ("place", "tags"):
            assert batch.items.rows[feature].unique().numel() == batch.items.rows[feature].numel()
        seen += batch.num_targets
    assert seen == dataset[1].counts.train_events > 100


def rows_of(batch: RankingBatch, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rows[number] for number in batch.row_ids.tolist()]


def shown(row: dict[str, Any], feature: str) -> list[Any]:
    return row[f"impression.{feature}"][: row["train_end"]]


def test_a_candidates_gap_is_to_the_last_event_that_it_sees(dataset):
    rows, distinct = plain_rows(*dataset), set()
    for batch in batches_of(dataset, time=["gap"])[0]:
        gaps: list[int] = []
        for row in rows_of(batch, rows):
            for end, time in zip(row["impression.history_end"], shown(row, "time"), strict=False):
                gaps.append(1 + int(2 * np.log2(1 + time - row["time"][end - 1])) if end else 0)
        assert batch.candidate_time_rows["gap"].tolist() == gaps
        distinct |= set(gaps)
    assert len(distinct) > 4


def test_only_selected_columns_are_read(dataset):
    batches, wanted = batches_of(dataset, event_features=["price"], candidate_features=["place"], user_features=[])
    assert wanted.features == frozenset({"event.price", "impression.place"})
    for batch in batches:
        assert batch.items.candidates.keys() == {"place"}
        assert batch.items.events.keys() == {"price"}
        assert not batch.items.users
        assert batch.times is batch.candidate_times is None
        values: Tensor = batch.items.events["price"].dense
        assert values.shape == (batch.layout.num_events, 1)
