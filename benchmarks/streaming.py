"""The training stream in events per second, in one thread, compared with a bare pyarrow scan of the same columns of the same files.

The log is that of prepare (benchmarks/preparing.py): about 100 events per user, so that hardly any history is cut at
MAX_HISTORY, and the stream delivers nearly all events that the scan reads. Each side counts what it delivers: the scan every
event of the files, the stream the input events of its batches (of a user's n events, n - 3 under leave-one-out).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from benchmarks.measure import Comparison, take_turns
from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from models.objectives.config import FullSoftmaxConfig, SampledSoftmaxConfig
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.stream.examples import Examples, examples_of
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.histories import TrainStream
from trainer.data.stream.order import Position
from trainer.data.stream.part_files import CUTS
from trainer.data.stream.row_groups import RowGroupReader

NUM_EVENTS = 5_000_000
MAX_HISTORY = 200
BATCH_SIZE = 128
BATCH_TOKENS = 12_800  # about as many events as BATCH_SIZE histories have
COLUMNS = ("item", *CUTS)
SEED = 1
REPEATS = 5  # epochs in one turn: one alone is over before memory has been looked at twice
OBJECTIVES: dict[str, SampledSoftmaxConfig | FullSoftmaxConfig] = {
    "sampled_softmax": SampledSoftmaxConfig(),
    "full_softmax": FullSoftmaxConfig(),
}
CEILING = "bare pyarrow scan of item and cuts by row group, checksums verified, 1 thread; counts all events"


@dataclass(frozen=True)
class _Case:
    """A way to make global batches, and the share of the first of `world_size` ranks of them."""

    examples: Examples
    batch_tokens: int | None
    world_size: int

    @property
    def name(self) -> str:
        size = f"{BATCH_SIZE} histories" if self.batch_tokens is None else f"{self.batch_tokens:,} events at most"
        share = "" if self.world_size == 1 else f", rank 0 of {self.world_size}"
        return f"batches of {size}{share}"

    def batches(self, rank: int = 0) -> GlobalBatches:
        return GlobalBatches(self.examples, BATCH_SIZE, self.batch_tokens, SEED, rank, self.world_size)


def compare(folder: Path, turns: int) -> Iterator[Comparison]:
    """Measure the first epoch of the dataset in `folder`, each time with a new reader, so that nothing is cached in memory."""
    manifest = read_manifest(folder)
    yield from _compare(folder, manifest, _case(folder, manifest, None, 1), turns, packed=True)
    world = [_case(folder, manifest, tokens, 2) for tokens in (None, BATCH_TOKENS)]
    found = f"imbalance {_imbalance(world[0]):.3f} of histories, {_imbalance(world[1]):.3f} of events"
    yield from _compare(folder, manifest, world[1], turns, packed=False, remark=f"; {found}")


def _compare(
    folder: Path, manifest: Manifest, case: _Case, turns: int, packed: bool, remark: str = ""
) -> Iterator[Comparison]:
    """Measure packed arrays, if requested, and batches of each objective."""
    num_inputs = sum(step.share.items.size for step in _stream(folder, manifest, case).packed(Position(0, 0), 1))
    kinds: list[Literal["packed", "sampled_softmax", "full_softmax"]] = ["sampled_softmax", "full_softmax"]
    for kind in ["packed", *kinds] if packed else kinds:
        name = f"stream, {'packed' if kind == 'packed' else kind}, {case.name}{remark}; counts input events"
        ours, ceiling = _epoch(folder, manifest, case, kind), _scan(folder, manifest)
        amounts = num_inputs * REPEATS, _num_events(manifest) * REPEATS
        yield take_turns(name, "events/s", amounts[0], ours, ceiling, CEILING, turns, amounts[1])


def _epoch(folder: Path, manifest: Manifest, case: _Case, kind: str) -> Callable[[], None]:
    def work() -> None:
        for _ in range(REPEATS):
            if kind == "packed":
                steps: Iterator[object] = _stream(folder, manifest, case).packed(Position(0, 0), 1)
            else:
                steps = _stream(folder, manifest, case, kind).steps(Position(0, 0), 1)
            for _ in steps:
                pass

    return work


def _scan(folder: Path, manifest: Manifest) -> Callable[[], None]:
    def work() -> None:
        for part in manifest.parts * REPEATS:
            with pq.ParquetFile(folder / part.path, page_checksum_verification=True) as file:
                for number in range(file.num_row_groups):
                    file.read_row_group(number, columns=list(COLUMNS), use_threads=False)

    return work


def _case(folder: Path, manifest: Manifest, batch_tokens: int | None, world_size: int) -> _Case:
    """Return one case. Cuts are read here, as at the start of training, if history lengths are needed to compare several ranks."""
    reader = RowGroupReader(folder, manifest)
    return _Case(examples_of(reader, MAX_HISTORY, "recent", world_size > 1), batch_tokens, world_size)


def _stream(folder: Path, manifest: Manifest, case: _Case, objective: str = "sampled_softmax") -> TrainStream:
    model = NextItemConfig(max_history=MAX_HISTORY, objective=OBJECTIVES[objective])
    return TrainStream(
        RowGroupReader(folder, manifest),
        case.batches(),
        model,
        Catalogue(manifest.num_item_rows, manifest.num_item_rows),
    )


def _imbalance(case: _Case) -> float:
    """Return the cost of ranks waiting for each other: the largest rank's events, summed over an epoch's steps, over their mean."""
    shares = np.stack([_events_by_step(case.batches(rank)) for rank in range(case.world_size)])
    return float(shares.max(axis=0).sum() / shares.mean(axis=0).sum())


def _events_by_step(batches: GlobalBatches) -> np.ndarray:
    """Return the input events of a rank's share of every step of the first epoch."""
    found = []
    for chunk in batches.chunks(Position(0, 0), 1):
        assert chunk.chosen.length is not None
        sums = np.concatenate(([0], np.cumsum(chunk.chosen.length)))
        found.append(np.diff(sums[chunk.share]))
    return np.concatenate(found)


def _num_events(manifest: Manifest) -> int:
    return sum(group.num_events for part in manifest.parts for group in part.row_groups)
