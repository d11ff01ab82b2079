"""Row groups as they are read, and what becomes of a file that is damaged, exchanged or gone: an error that names it."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.grown_datasets import events_dataset, ranking_dataset
from tests.support.jobs import tiny_job
from tests.support.plain_dataset import plain_rows
from trainer.config.job import SILENT
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.examples import examples_of
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.histories import TrainStream
from trainer.data.stream.order import Position
from trainer.data.stream.prefetch import Prefetch
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.errors import UserError
from trainer.loop.train import Training

PART = "part-000-00001.parquet"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("original")
    return folder, tiny_dataset(folder)


@pytest.fixture
def dataset(original, tmp_path) -> tuple[Path, Manifest]:
    """Return a copy to damage."""
    shutil.copytree(original[0], tmp_path / "dataset")
    return tmp_path / "dataset", original[1]


def rewrite(path: Path, change, num_groups: int = 5) -> None:
    """Rewrite the same rows with a changed schema, under the same name; row groups stay."""
    file = pq.ParquetFile(path)
    tables = [change(file.read_row_group(number)) for number in range(num_groups)]
    with pq.ParquetWriter(path, tables[0].schema, write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table)


def with_its_size(folder: Path, manifest: Manifest, name: str = PART) -> Manifest:
    """Return a manifest that agrees with the present file, so that its size shows no change."""
    size = (folder / name).stat().st_size
    return replace(manifest, parts=tuple(replace(p, num_bytes=size) if p.path == name else p for p in manifest.parts))


def refusal(reader: RowGroupReader, groups: range = range(10)) -> str:
    """Return the outcome of reading the groups one after another."""
    with pytest.raises(UserError) as caught:
        [reader.read([group]) for group in groups]
    return str(caught.value)


def flip_a_page(path: Path, group: int) -> None:
    """Flip one bit of the items of a row group; size and time of change stay, as with a failing disk."""
    stat = path.stat()
    column = pq.ParquetFile(path).metadata.row_group(group).column(1)
    assert column.path_in_schema.startswith("item")
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_files_as_they_were_prepared_are_accepted(original, tmp_path):
    folder, manifest = original
    RowGroupReader(folder, manifest).check_files()
    for write in (events_dataset, ranking_dataset):
        other = write(tmp_path / write.__name__, num_days=3)
        wanted = ColumnSelection(users=True, times=True, features=True, impressions=write is ranking_dataset)
        RowGroupReader(tmp_path / write.__name__, other, wanted).check_files()


def test_the_cuts_of_all_rows_are_those_of_each_group(tmp_path):
    manifest = events_dataset(tmp_path, num_days=3)
    reader = RowGroupReader(tmp_path, manifest)
    plain = [row["train_end"] for row in plain_rows(tmp_path, manifest)]
    assert reader.train_ends().tolist() == plain
    assert np.concatenate([reader.cuts(group)[0] for group in range(len(reader.group_rows))]).tolist() == plain


@pytest.mark.parametrize("together", [1, 3, 14])
def test_groups_read_together_are_those_read_alone(tmp_path, together):
    manifest = events_dataset(tmp_path, num_days=3)
    reader, alone = RowGroupReader(tmp_path, manifest), RowGroupReader(tmp_path, manifest, cache_bytes=0)
    for first in range(0, 14, together):
        wanted = list(range(first, min(first + together, 14)))[::-1]  # not in the order of the file
        for group, packed in reader.read(wanted).items():
            other = alone.read([group])[group]
            for name in ("items", "starts", "ends", "train_end", "validation_end"):
                np.testing.assert_array_equal(getattr(packed, name), getattr(other, name))


def test_a_flipped_bit_is_found_by_the_page_checksum(dataset):
    folder, manifest = dataset
    flip_a_page(folder / PART, group=3)
    reader = RowGroupReader(folder, manifest)
    reader.check_files()  # nothing of it shows from outside
    message = refusal(reader)
    assert f"{PART}, row group 3: cannot be read" in message
    assert "shoal prepare" in message


def test_a_flipped_bit_among_groups_that_are_read_together_is_found_in_its_group(dataset):
    folder, manifest = dataset
    flip_a_page(folder / PART, group=3)
    with pytest.raises(UserError, match=f"{PART}, row group 3: cannot be read"):
        RowGroupReader(folder, manifest).read(range(10))


def test_a_truncated_file_is_refused_before_the_first_step(dataset):
    folder, manifest = dataset
    size = (folder / PART).stat().st_size
    os.truncate(folder / PART, size - 10)
    with pytest.raises(UserError, match=rf"{PART}: has {size - 10:,} bytes, the manifest says {size:,}"):
        RowGroupReader(folder, manifest).check_files()


def test_a_file_that_is_gone_is_refused_before_the_first_step(dataset):
    folder, manifest = dataset
    (folder / PART).unlink()
    with pytest.raises(UserError, match=f"{PART}: cannot be read .*No such file"):
        RowGroupReader(folder, manifest).check_files()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["item"]), "column 'item' is missing, expected list<int32>"),
        (
            lambda t: t.set_column(1, "item", t.column("item").cast(pa.list_(pa.int64()))),
            "column 'item' has the type list<int64>, expected list<int32>",
        ),
        (
            lambda t: t.set_column(3, "train_end", t.column("train_end").cast(pa.int64())),
            "column 'train_end' has the type int64, expected int32",
        ),
        (lambda t: t.slice(1), "its row groups are not those of the manifest"),
    ],
    ids=["missing", "type of lists", "type", "rows"],
)
def test_another_schema_is_refused_before_the_first_step_by_file_and_column(dataset, change, message):
    folder, manifest = dataset
    rewrite(folder / PART, change)
    with pytest.raises(UserError, match=f"{PART}: {message}"):
        RowGroupReader(folder, with_its_size(folder, manifest)).check_files()


def test_parts_that_disagree_on_a_type_that_may_vary_are_refused(dataset):
    """Users are integers or strings, but not the one here and the other there."""
    folder, manifest = dataset
    rewrite(folder / PART, lambda t: t.set_column(0, "user", pa.array(range(t.num_rows))))
    with pytest.raises(UserError, match=f"{PART}: column 'user' has the type int64, expected string"):
        RowGroupReader(folder, with_its_size(folder, manifest), ColumnSelection(users=True)).check_files()


def test_columns_that_are_not_read_may_be_anything(dataset):
    folder, manifest = dataset
    rewrite(folder / PART, lambda t: t.drop_columns(["user", "time"]))
    RowGroupReader(folder, with_its_size(folder, manifest)).check_files()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def exchange(path: Path) -> None:
    """Replace the file by another one of the same size, by a rename: an open handle still reads the old one."""
    (path.parent / "new").write_bytes(path.read_bytes())
    os.replace(path.parent / "new", path)


@pytest.mark.parametrize("happens", [truncate, exchange, Path.unlink, lambda path: path.write_bytes(b"PAR1" * 9)])
def test_a_change_of_a_file_during_a_run_is_detected_at_the_next_read(dataset, happens):
    folder, manifest = dataset
    reader = RowGroupReader(folder, manifest, cache_bytes=0)
    reader.check_files()
    reader.read([5])
    happens(folder / PART)
    assert reader.read([0])[0].items.size  # of the other part
    assert f"{PART}, row group 1: cannot be read" in refusal(reader, range(6, 7))


def test_the_error_reaches_the_loop_through_the_prefetching_thread(dataset):
    folder, manifest = dataset
    reader = RowGroupReader(folder, manifest, cache_bytes=0)
    examples = examples_of(reader, 5, "recent", with_lengths=False)
    stream = TrainStream(
        reader, GlobalBatches(examples, 4, None, 1, 0, 1), NextItemConfig(max_history=5), Catalogue(41, 41)
    )
    (folder / PART).unlink()
    with (
        pytest.raises(UserError, match=f"{PART}, row group [0-4]: cannot be read"),
        Prefetch(stream.steps(Position(0, 0), 1)) as steps,
    ):
        list(steps)


def start_training(world: World, run_dir: Path, dataset: Path) -> None:
    Training(tiny_job(run_dir, dataset), world, SILENT)


def test_training_does_not_start_on_a_part_that_was_exchanged(rank_pool, dataset, tmp_path):
    folder, _ = dataset
    (folder / PART).write_bytes(b"something else")
    with pytest.raises(UserError, match=f"{PART}: has 14 bytes"):
        rank_pool.run(2, start_training, tmp_path / "run", folder)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
