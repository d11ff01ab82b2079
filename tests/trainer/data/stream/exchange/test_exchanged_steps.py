"""Exchanged steps equal those of ranks that read everything, and each rank reads its part only."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.grown_datasets import events_dataset
from tests.support.jobs import tiny_job
from tests.support.streams import BATCH, EPOCHS, MAX_HISTORY, SEED, TOKENS
from trainer.config.job import SILENT
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.stream import global_batches
from trainer.data.stream.examples import Examples, examples_of, typical_events
from trainer.data.stream.exchange.lengths import divided_lengths, read_own_ends
from trainer.data.stream.exchange.rounds import stretches_of
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.histories import JaggedHistories, TrainStream
from trainer.data.stream.order import Position
from trainer.data.stream.packed import PackedHistories
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.data.stream.shares import PackedStep
from trainer.errors import UserError
from trainer.loop.train import Training

START = Position(0, 0)
ALL_COLUMNS = ColumnSelection(times=True, features=True)
Steps = list[PackedStep[JaggedHistories]]
FIXED = "of a fixed number"
KINDS = {
    "recent": (False, {}),
    "windows": (True, {}),
    "masked": (False, {"encoder": {"kind": "bert4rec"}}),
    "masked windows": (True, {"encoder": {"kind": "bert4rec"}}),
    "dealt by cost": (False, {}),
    FIXED: (False, {}),
    f"windows, {FIXED}": (True, {}),
}
kinds = pytest.mark.parametrize("kind", KINDS)


class PackedStream(TrainStream):
    """Stream that stops at packed arrays, so that tests see every column."""

    def _step(self, packed: Any) -> Any:
        return packed


class CountingReader(RowGroupReader):
    """Reader that notes the row groups that it reads, and cannot read one of them."""

    def __init__(self, *arguments: Any, broken: int | None = None) -> None:
        super().__init__(*arguments)
        self.groups: list[int] = []
        self.broken = broken

    def _load_all(self, numbers: list[int]) -> dict[int, PackedHistories]:
        self.groups += numbers
        if self.broken in numbers:
            raise UserError(f"row group {self.broken}: cannot be read")
        return super()._load_all(numbers)


def stream_of(folder: Path, kind: str, rank: int, world: World | None, world_size: int, **reader: Any) -> PackedStream:
    """Return the stream of one rank: it exchanges examples with the ranks of `world`, or reads everything without."""
    windows, settings = KINDS[kind]
    manifest = read_manifest(folder)
    model = NextItemConfig.model_validate({"max_history": MAX_HISTORY, **settings})
    rows = CountingReader(folder, manifest, ALL_COLUMNS, **reader)
    lengths = None
    if world is None:
        long_histories: Any = "windows" if windows else "recent"
        examples = examples_of(rows, MAX_HISTORY, long_histories, True, model.masks_items)
    else:
        ends = read_own_ends(rows, world, model.masks_items)
        sizes, lengths = divided_lengths(rows, ends, MAX_HISTORY, windows, world)
        typical = typical_events(rows, MAX_HISTORY)
        examples = Examples(sizes, rows.first_rows, MAX_HISTORY, typical, windows=windows)
    costs = np.arange(MAX_HISTORY + 1) ** 2 if kind == "dealt by cost" else None
    tokens = None if FIXED in kind else TOKENS
    batches = GlobalBatches(examples, BATCH, tokens, SEED, rank, world_size, 64, lengths, costs, FIXED in kind)
    num_items = manifest.num_item_rows
    return PackedStream(rows, batches, model, Catalogue(num_items, num_items))


@contextmanager
def chunks_of(num_events: int | None) -> Iterator[None]:
    """Read so many events of a rank at a time."""
    whole = global_batches.CHUNK_EVENTS
    global_batches.CHUNK_EVENTS = num_events or whole
    try:
        yield
    finally:
        global_batches.CHUNK_EVENTS = whole


def exchanged(
    world: World, folder: Path, kind: str, start: Position, num_events: int | None
) -> tuple[Steps, list[int]]:
    """Return the steps of this rank, and the row groups that it read."""
    stream = stream_of(folder, kind, world.rank, world, world.world_size)
    with chunks_of(num_events), stream.read_ahead(start, EPOCHS) as steps:
        result: Any = list(steps)
    return result, stream.reader.groups  # type: ignore[attr-defined]


def plain(folder: Path, kind: str, start: Position, rank: int, world_size: int) -> Steps:
    return list(stream_of(folder, kind, rank, None, world_size).packed(start, EPOCHS))


def values_of(value: Any) -> Any:
    """Return nested dataclasses and arrays as plain values with their types."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.tolist()
    if isinstance(value, Mapping):
        return {name: values_of(entry) for name, entry in value.items()}
    if is_dataclass(value):
        return {entry.name: values_of(getattr(value, entry.name)) for entry in fields(value)}
    return value


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a dataset with all kinds of features, to which a day was appended."""
    path: Path = tmp_path_factory.mktemp("exchanged")
    events_dataset(path, num_days=2)
    return path


@kinds
@pytest.mark.parametrize(("world_size", "num_events"), [(2, None), (2, 25), (3, 60), (4, 1)])
def test_exchanged_steps_equal_those_of_ranks_that_read_everything(rank_pool, folder, kind, world_size, num_events):
    """Bit for bit, in the order of each rank: examples, events, times, features and positions."""
    results = rank_pool.run(world_size, exchanged, folder, kind, START, num_events)
    for rank, (steps, _) in enumerate(results):
        expected = plain(folder, kind, START, rank, world_size)
        assert [values_of(step) for step in steps] == [values_of(step) for step in expected]
    ids = [row for steps, _ in results for step in steps if step.epoch == 0 for row in step.share.row_ids.tolist()]
    alone = plain(folder, kind, START, 0, 1)
    assert sorted(ids) == sorted(row for step in alone if step.epoch == 0 for row in step.share.row_ids.tolist())
    assert set(results[0][0][0].share.features) == {"place", "tags", "price", "published", "vector"}


@pytest.mark.parametrize("kind", ["recent", "windows", "dealt by cost", FIXED])
def test_training_resumes_with_other_ranks_from_any_step_with_the_identical_remainder(rank_pool, folder, kind):
    whole = plain(folder, kind, START, 0, 1)
    for number, world_size in ((0, 3), (5, 2), (len(whole) // 2, 4), (len(whole) - 2, 2)):
        results = rank_pool.run(world_size, exchanged, folder, kind, whole[number].after, 40)
        for steps in zip(*(steps for steps, _ in results), strict=True):
            number += 1
            assert {(step.before, step.after) for step in steps} == {(whole[number].before, whole[number].after)}
            ids = sorted(row for step in steps for row in step.share.row_ids.tolist())
            assert ids == sorted(whole[number].share.row_ids.tolist())
        assert number == len(whole) - 1


def bytes_of_groups(folder: Path, manifest: Manifest) -> np.ndarray:
    """Return the bytes of every row group in the files, (groups,)."""
    sizes = np.zeros(len(manifest.group_rows), dtype=np.int64)
    for part in manifest.parts:
        footer = pq.read_metadata(folder / part.path)
        for number, piece in enumerate(part.row_groups):
            group = footer.row_group(number)
            sizes[piece.group] += sum(group.column(c).total_compressed_size for c in range(group.num_columns))
    return sizes


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_rank_reads_its_part_of_the_bytes(rank_pool, tmp_path, world_size):
    """Every row group of an epoch is read by one rank, and once."""
    manifest = tiny_dataset(tmp_path, num_users=600, num_parts=4, groups_per_part=20)
    sizes = bytes_of_groups(tmp_path, manifest)
    read = rank_pool.run(world_size, groups_of_one_epoch, tmp_path)
    assert sorted(group for groups in read for group in groups) == list(range(sizes.size))
    of_ranks = np.asarray([sizes[groups].sum() for groups in read])
    assert of_ranks.max() <= 1.05 * sizes.sum() / world_size


def groups_of_one_epoch(world: World, folder: Path) -> list[int]:
    stream = stream_of(folder, "recent", world.rank, world, world.world_size)
    with chunks_of(400), stream.read_ahead(START, 1) as steps:
        assert sum(1 for _ in steps) > 20
    return stream.reader.groups  # type: ignore[attr-defined, no-any-return]


def kept(world: World, folder: Path) -> tuple[int, int]:
    """Return the lengths that this rank keeps, and the number of all examples."""
    batches = stream_of(folder, "windows", world.rank, world, world.world_size).batches
    assert batches.lengths is not None
    return batches.lengths.own.size, batches.examples.number_of(Position(1, 0))


def test_each_rank_keeps_its_part_of_the_lengths(rank_pool, folder):
    results = rank_pool.run(4, kept, folder)
    total = results[0][1]
    assert sum(own for own, _ in results) == total
    assert max(own for own, _ in results) < 0.5 * total


@pytest.mark.parametrize("size", [1, 10, 300])
def test_rounds_have_a_bounded_number_of_examples(folder, size):
    batches = stream_of(folder, "windows", 0, None, 2).batches
    events = [1] * len(batches.examples.of(0).group_sizes)
    with chunks_of(size):
        rounds = list(stretches_of(batches, events, START, EPOCHS))
        assert max(stretch.places.position.size for stretch in rounds) <= batches.chunk_examples <= 2 * size
    for epoch in range(EPOCHS):
        places = [stretch.places.position for stretch in rounds if stretch.order.epoch == epoch]
        assert np.concatenate(places).tolist() == list(range(batches.examples.of(epoch).num_examples))


def stop_early(world: World, folder: Path) -> tuple[int, int]:
    stream = stream_of(folder, "recent", world.rank, world, world.world_size)
    with chunks_of(25), stream.read_ahead(START, EPOCHS) as steps:
        taken = sum(1 for _ in islice(steps, 3))
    return taken, int(world.sum(torch.ones(1, dtype=torch.int64)).item())


def test_ranks_that_stop_early_leave_no_other_waiting(rank_pool, folder):
    assert rank_pool.run(3, stop_early, folder) == [(3, 3)] * 3


def fail_on_one_rank(world: World, folder: Path, broken: int) -> tuple[int, str, int]:
    """Return the steps that this rank trained before the error, the error, and a sum over ranks after it."""
    stream = stream_of(folder, "recent", world.rank, world, world.world_size, broken=broken)
    taken = 0
    try:
        with chunks_of(25), stream.read_ahead(START, 1) as steps:
            for _ in steps:
                taken += 1
    except UserError as error:
        return taken, str(error), int(world.sum(torch.ones(1, dtype=torch.int64)).item())
    return taken, "no error", 0


def test_a_row_group_that_one_rank_cannot_read_is_an_error_of_all(rank_pool, folder):
    last = int(stream_of(folder, "recent", 0, None, 1).batches.order(0).permuted[-1])
    results = rank_pool.run(3, fail_on_one_rank, folder, last)
    assert results == [(results[0][0], f"row group {last}: cannot be read", 3)] * 3


def counted_steps(world: World, folder: Path, kind: str) -> list[list[int]]:
    stream = stream_of(folder, kind, world.rank, world, world.world_size)
    counts = []
    for limit in (None, 2):
        whole = global_batches.MAX_CHUNK_EXAMPLES
        global_batches.MAX_CHUNK_EXAMPLES = 9
        try:
            counts.append(
                [
                    stream.batches.count_steps(e + world.rank if e + world.rank < 5 else None, limit)
                    for e in range(0, 5, 3)
                ]
            )
        finally:
            global_batches.MAX_CHUNK_EXAMPLES = whole
    return counts


@kinds
def test_the_steps_of_epochs_are_counted_by_the_ranks_together(rank_pool, folder, kind):
    batches = stream_of(folder, kind, 0, None, 1).batches
    results = rank_pool.run(3, counted_steps, folder, kind)
    whole = [counts for counts, _ in results]
    assert [whole[epoch % 3][epoch // 3] for epoch in range(5)] == [batches.num_steps(epoch) for epoch in range(5)]
    assert whole[2][1] == 0  # there is no sixth epoch
    limited = [limited for _, limited in results]
    assert all(2 <= limited[epoch % 3][epoch // 3] <= batches.num_steps(epoch) for epoch in range(5))


def train(world: World, run_dir: Path, dataset: Path, settings: Mapping[str, Any]) -> bool:
    """Train an epoch, and return whether the ranks exchanged examples."""
    training = Training(tiny_job(run_dir, dataset, train={"epochs": 1, **settings}), world, SILENT)
    training.run()
    return training.stream.batches.lengths is not None


@pytest.mark.parametrize(
    ("settings", "exchanges"),
    [
        ({"batch_tokens": 64}, True),
        ({"batch_size": 8}, True),
        ({"batch_size": 8, "deal_by": "flops"}, True),
        ({"batch_size": 8, "deal_by": "count"}, False),
    ],
)
def test_a_training_of_several_ranks_exchanges_examples_to_deal_them(rank_pool, tmp_path, settings, exchanges):
    tiny_dataset(tmp_path / "dataset")
    assert rank_pool.run(2, train, tmp_path / "run", tmp_path / "dataset", settings) == [exchanges] * 2
    assert (tmp_path / "run" / "metrics.jsonl").exists()
