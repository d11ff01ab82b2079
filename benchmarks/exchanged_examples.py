"""Batches of a budget of events: ranks that exchange examples, compared with ranks that read everything.

`python -m benchmarks.exchanged_examples` measures an epoch of packed batches with 1 and 2 processes of one thread, and stores
the figures. `--page` only writes their table into docs/data.md. Both sides have the same batches and shares, in turns. Files are in
the page cache, so times are those of decoding and exchange, not of a storage.
"""

import json
import os
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from benchmarks.pages import markdown, measure_and_publish, with_table
from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from sharding.config import VocabularyIdsConfig
from sharding.world import World, current_world
from trainer.data.dataset.features import Ids
from trainer.data.dataset.grouping import partition_events, sort_vocabulary
from trainer.data.dataset.manifest import Counts, Manifest, read_manifest, write_manifest
from trainer.data.dataset.partition import group_partition
from trainer.data.dataset.partition_events import GroupPlan, PartitionInput
from trainer.data.dataset.profile import TimeBins
from trainer.data.dataset.splits import LeaveOneOut
from trainer.data.dataset.writer import OldGroups, numbered, write_catalogue, write_part
from trainer.data.stream.examples import Examples, examples_of, typical_events
from trainer.data.stream.exchange.lengths import divided_lengths, read_own_ends
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.histories import TrainStream
from trainer.data.stream.order import Position
from trainer.data.stream.packed import PackedHistories
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader

RESULTS, PAGE = Path("docs/results/exchanged_examples.json"), Path("docs/data.md")
NUM_USERS, NUM_ITEMS, NUM_PARTS = 10_000, 20_000, 2
MEAN_EVENTS, LONGEST = 100, 200  # lengths are log-normal
TOKENS_PER_RANK = 8_192
WORLD_SIZES = (1, 2)
SIDES = ("exchanged", "whole")


def main() -> None:
    description = "Exchanged examples, compared with ranks that read everything."
    measure_and_publish(description, _measured, 3, (RESULTS, PAGE), with_tables)


def _measured(turns: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="shoal-bench-exchange-") as folder:
        write_dataset(Path(folder) / "dataset")
        load = os.getloadavg()[0]
        return {"load": load, "rows": [measure(size, turns, Path(folder)) for size in WORLD_SIZES]}


def with_tables(page: str, stored: dict[str, Any]) -> str:
    """Return the page with the table of stored figures."""
    header = ["workers", "of the files, most per worker", "read everything"]
    header += ["M events/s of all workers", "read everything", "ratio: median (spread)", "imbalance of events"]
    lines = []
    for row in stored["rows"]:
        speeds = {side: [row["events"] / seconds / 1e6 for seconds in row["seconds"][side]] for side in SIDES}
        ratios = [ours / other for ours, other in zip(speeds["exchanged"], speeds["whole"], strict=True)]
        lines.append(
            [
                str(row["world_size"]),
                *(f"{max(row['read'][side]) / row['file_bytes']:.1%}" for side in SIDES),
                *(f"{statistics.median(speeds[side]):.1f}" for side in SIDES),
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})",
                f"{row['imbalance']:.3f}",
            ]
        )
    return with_table(page, "exchanged examples", markdown(header, lines))


def write_dataset(folder: Path) -> None:
    """Write histories of uneven lengths."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    lengths = np.clip(random.lognormal(np.log(MEAN_EVENTS) - 0.5, 1.0, NUM_USERS).astype(np.int64), 3, 10 * LONGEST)
    count = int(lengths.sum())
    events = pa.table(
        {
            "user": np.repeat(np.arange(NUM_USERS), lengths),
            "item": random.integers(0, NUM_ITEMS, count),
            "time": np.arange(count),
            "row": np.arange(count),
        }
    )
    vocabulary = sort_vocabulary(events.column("item"))
    plan = GroupPlan(LeaveOneOut(3), {"item": Ids(VocabularyIdsConfig(), vocabulary)}, (), TimeBins(0, count))
    parts = []
    for number, share in enumerate(partition_events(events, NUM_PARTS)):
        grouped = group_partition(PartitionInput(pa.Table.from_batches([share])), plan)
        path = folder / f"part-000-{number:05d}.parquet"
        parts.append(write_part(path, grouped.rows, number, 0, OldGroups((), (0,))))
    numbers = np.arange(1, len(vocabulary) + 1)
    catalogue = folder / "vocabulary-000-item.parquet"
    vocabularies = {"item": write_catalogue(catalogue, vocabulary, numbers.astype(np.int32), numbers, numbers)}
    counts = Counts(count, count, {}, NUM_USERS, len(vocabulary), count, 0, 0, 0, 0, 0, 0)
    split = {"kind": "leave_one_out", "min_events": 3}
    manifest = Manifest("benchmark", {"files": [], "columns": {}, "settings": {}}, split, counts, vocabularies, ())
    write_manifest(folder, Manifest(**{**vars(manifest), "parts": numbered(parts, 0)}))


def measure(world_size: int, turns: int, folder: Path) -> dict[str, Any]:
    """Return the figures of a number of ranks."""
    multiprocessing.spawn(_rank, (world_size, turns, str(folder)), nprocs=world_size)
    return merged(world_size, folder)


def merged(world_size: int, folder: Path) -> dict[str, Any]:
    """Return the figures of a number of ranks from those of each rank."""
    ranks = [json.loads((folder / f"{world_size}-{rank}.json").read_text()) for rank in range(world_size)]
    by_step = np.asarray([rank["by_step"] for rank in ranks])
    return {
        "world_size": world_size,
        "events": int(by_step.sum()),
        "file_bytes": ranks[0]["file_bytes"],
        "read": {side: [rank["read"][side] for rank in ranks] for side in SIDES},
        # A turn takes as long as its slowest rank.
        "seconds": {side: np.max([rank["seconds"][side] for rank in ranks], axis=0).tolist() for side in SIDES},
        "imbalance": float(by_step.max(axis=0).sum() / by_step.mean(axis=0).sum()),
    }


def _rank(rank: int, world_size: int, turns: int, folder: str) -> None:
    """Measure as one rank, and write its figures into a file."""
    torch.set_num_threads(1)
    store = Path(folder) / f"store-{world_size}"
    timeout = timedelta(minutes=10)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timeout)
    world = current_world(torch.device("cpu"))
    dataset = Path(folder) / "dataset"
    figures: dict[str, Any] = {"seconds": {side: [] for side in SIDES}, "read": {}, "by_step": []}
    for turn in range(-1, turns):  # the first one is not counted
        for side in SIDES:
            stream, reader = _stream(dataset, side, world)
            world.barrier()
            started = time.perf_counter()
            with stream.read_ahead(Position(0, 0), 1) as steps:
                by_step = [step.share.items.size for step in steps]  # type: ignore[attr-defined]
            if turn >= 0:
                figures["seconds"][side].append(time.perf_counter() - started)
            sizes = reader.bytes_of_groups()
            figures["read"][side] = int(sizes[reader.groups].sum())
            figures |= {"by_step": by_step, "file_bytes": int(sizes.sum())}
    (Path(folder) / f"{world_size}-{rank}.json").write_text(json.dumps(figures))
    dist.destroy_process_group()


class _PackedStream(TrainStream):
    """Stream that stops at packed arrays: what follows is the same on both sides."""

    def _step(self, packed: Any) -> Any:
        return packed


class _CountingReader(RowGroupReader):
    """Reader that notes the row groups that it reads."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        super().__init__(folder, manifest, ColumnSelection(times=True))
        self.groups: list[int] = []
        self._folder = folder
        self._parts = manifest.parts

    def _load_all(self, numbers: list[int]) -> dict[int, PackedHistories]:
        self.groups += numbers
        return super()._load_all(numbers)

    def bytes_of_groups(self) -> np.ndarray:
        """Return the bytes of every row group in the files."""
        sizes = np.zeros(len(self.group_rows), dtype=np.int64)
        for part in self._parts:
            footer = pq.read_metadata(self._folder / part.path)
            for number, piece in enumerate(part.row_groups):
                columns = range(footer.num_columns)
                sizes[piece.group] += sum(footer.row_group(number).column(c).total_compressed_size for c in columns)
        return sizes


def _stream(dataset: Path, side: str, world: World) -> tuple[TrainStream, _CountingReader]:
    manifest = read_manifest(dataset)
    reader = _CountingReader(dataset, manifest)
    lengths = None
    if side == "whole":
        examples = examples_of(reader, LONGEST, "recent", with_lengths=True)
    else:
        sizes, lengths = divided_lengths(reader, read_own_ends(reader, world, False), LONGEST, False, world)
        examples = Examples(sizes, reader.first_rows, LONGEST, typical_events(reader, LONGEST))
    tokens = TOKENS_PER_RANK * world.world_size
    batches = GlobalBatches(examples, 1, tokens, 1, world.rank, world.world_size, lengths=lengths)
    catalogue = Catalogue(manifest.num_item_rows, manifest.num_item_rows)
    return _PackedStream(reader, batches, NextItemConfig(max_history=LONGEST), catalogue), reader


if __name__ == "__main__":
    main()
