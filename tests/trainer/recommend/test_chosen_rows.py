"""Chosen rows of a dataset come in full batches, each once, with the histories that are stored, for any number of ranks."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.datasets import tiny_dataset, tiny_ranking_dataset
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.recommend.chosen_rows import ChosenRows

NUM_ROWS = 60


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("dataset")
    return folder, tiny_dataset(folder, num_users=NUM_ROWS)


def reader_of(dataset: tuple[Path, Manifest]) -> RowGroupReader:
    return RowGroupReader(*dataset, ColumnSelection(users=True, times=True))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 6, 12, 100])
@pytest.mark.parametrize("every", [1, 7, 59])
def test_all_chosen_rows_come_once_with_their_histories(
    dataset: tuple[Path, Manifest], world_size: int, batch_size: int, every: int
) -> None:
    reader = reader_of(dataset)
    num_rows = sum(reader.group_rows)
    rows = np.arange(0, num_rows, every)
    stored = {}
    for group, packed in reader.read(range(len(reader.group_rows))).items():
        for row in range(packed.starts.size):
            events = slice(packed.starts[row], packed.ends[row])
            assert packed.times is not None
            assert packed.users is not None
            number = int(reader.first_rows[group]) + row
            stored[number] = (
                packed.users[row].as_py(),
                packed.items[events].tolist(),
                packed.times[events].tolist(),
                int(packed.train_end[row]),
                int(packed.validation_end[row]),
            )
    share = max(1, batch_size // world_size)
    seen: list[int] = []
    for rank in range(world_size):
        chosen = ChosenRows(reader_of(dataset), rows, batch_size, rank, world_size)
        batches = list(chosen.batches())
        assert len(batches) == chosen.num_batches()
        sizes = [places.size for _, _, places in batches]
        filled = [size for size in sizes if size]
        assert sizes == filled + [0] * (len(sizes) - len(filled)), "batches without rows are the last ones"
        assert all(size == share for size in filled[:-1]), "all but the last one are full"
        for packed, numbers, places in batches:
            assert packed.users is not None
            assert packed.times is not None
            for place in places.tolist():
                events = slice(packed.starts[place], packed.ends[place])
                assert stored[int(numbers[place])] == (
                    packed.users[place].as_py(),
                    packed.items[events].tolist(),
                    packed.times[events].tolist(),
                    int(packed.train_end[place]),
                    int(packed.validation_end[place]),
                )
                seen.append(int(numbers[place]))
    assert sorted(seen) == rows.tolist()


def test_no_more_than_a_row_group_and_a_batch_are_held(dataset: tuple[Path, Manifest]) -> None:
    reader = reader_of(dataset)
    rows = np.arange(sum(reader.group_rows))
    held = [packed.starts.size for packed, _, places in ChosenRows(reader, rows, 8, 0, 1).batches() if places.size]
    assert max(held) < max(reader.group_rows) + 8


def test_nobody_is_chosen(dataset: tuple[Path, Manifest]) -> None:
    assert list(ChosenRows(reader_of(dataset), np.zeros(0, np.int64), 8, 0, 2).batches()) == []


def test_chosen_rows_keep_their_impressions(tmp_path: Path) -> None:
    """Each user was shown one item per event, at a time of its own, so an impression names its user."""
    users = [f"u{number:02d}" for number in range(40) for _ in range(1 + number % 3)]
    shown = {"user": users, "item": ["i1"] * len(users), "time": list(range(len(users)))}
    clicks = pa.array([float(number % 2) for number in range(len(users))], pa.float32())
    past = {name: values[:1] for name, values in shown.items()}
    manifest = tiny_ranking_dataset(tmp_path, pa.table({**shown, "label.click": clicks}), pa.table(past))
    columns = ColumnSelection(users=True, times=True, impressions=True, numbers=True)
    reader = RowGroupReader(tmp_path, manifest, columns)
    rows = np.arange(0, sum(reader.group_rows), 3)
    seen = 0
    for packed, _, places in ChosenRows(reader, rows, 5, 0, 1).batches():
        impressions = packed.impressions
        assert impressions is not None
        assert packed.users is not None
        for place in places.tolist():
            own = slice(impressions.starts[place], impressions.ends[place])
            user = packed.users[place].as_py()
            times = [time for time, of in enumerate(users) if of == user]
            assert impressions.times[own].tolist() == times
            assert impressions.labels["click"][own].tolist() == [time % 2 for time in times]
            seen += 1
    assert seen == rows.size
