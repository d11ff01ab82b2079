"""Chosen rows of a dataset come in full batches, each once, with the histories that are stored, for any number of ranks."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.datasets import tiny_dataset
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
