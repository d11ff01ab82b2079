"""The streams of all kinds as tests see them: their global steps, and what the files say that they should teach."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch

from models.batches.history_batch import HistoryBatch
from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from models.objectives.config import FullSoftmaxConfig, SampledSoftmaxConfig
from models.ranking.batch import RankingBatch
from models.ranking.reach import Reach
from tests.support.datasets import tiny_dataset
from tests.support.grown_datasets import events_dataset, ranking_dataset
from tests.support.plain_dataset import plain_rows
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.examples import WINDOW_STEP, Examples, examples_of
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.histories import TrainStream
from trainer.data.stream.impressions import ImpressionStream
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.data.stream.shares import EMPTY_ROW, Step

BATCH, TOKENS, MAX_HISTORY, EPOCHS, SEED = 7, 40, 6, 3, 11
Example = tuple[Any, ...]  # the id first, then whatever the model is given of it
OBJECTIVES = {"full": FullSoftmaxConfig(), "sampled": SampledSoftmaxConfig(num_negatives=5)}


@dataclass(frozen=True)
class Kind:
    """A stream over a dataset."""

    write: Callable[[Path], Manifest]
    long_histories: Literal["recent", "windows"] = "recent"
    batch_tokens: int | None = None
    # Whether batches of a fixed number of examples are dealt by length.
    deals_fixed: bool = False

    @property
    def is_ranking(self) -> bool:
        return self.write in (ranking_dataset, ranking_days)


def event_days(folder: Path) -> Manifest:
    return events_dataset(folder, num_days=3)


def ranking_days(folder: Path) -> Manifest:
    return ranking_dataset(folder, num_days=3)


KINDS = {
    "recent": Kind(tiny_dataset),
    "windows": Kind(tiny_dataset, "windows"),
    "dealt by length": Kind(tiny_dataset, deals_fixed=True),
    "windows, dealt by length": Kind(tiny_dataset, "windows", deals_fixed=True),
    "token budget": Kind(tiny_dataset, batch_tokens=TOKENS),
    "windows in a token budget": Kind(tiny_dataset, "windows", TOKENS),
    "ranking": Kind(ranking_dataset),
    "appended": Kind(event_days),
    "appended, windows in a token budget": Kind(event_days, "windows", TOKENS),
    "appended ranking": Kind(ranking_days),
}


@dataclass(frozen=True)
class Data:
    folder: Path
    manifest: Manifest
    kind: Kind

    def new_reader(self, cache_bytes: int = 1 << 20) -> RowGroupReader:
        return RowGroupReader(
            self.folder, self.manifest, ColumnSelection(impressions=self.kind.is_ranking), cache_bytes
        )

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue(self.manifest.num_item_rows, self.manifest.num_item_rows)

    @cached_property
    def reader(self) -> RowGroupReader:
        """One for many streams: what it holds is a cache."""
        return self.new_reader()

    @cached_property
    def examples_of_rows(self) -> Examples:
        needs_lengths = self.kind.batch_tokens is not None or self.kind.deals_fixed
        return examples_of(self.reader, MAX_HISTORY, self.kind.long_histories, needs_lengths)

    def batches(self, rank: int = 0, world_size: int = 1, seed: int = SEED) -> GlobalBatches:
        return GlobalBatches(
            self.examples_of_rows,
            BATCH,
            self.kind.batch_tokens,
            seed,
            rank,
            world_size,
            deals_fixed=self.kind.deals_fixed,
        )

    def stream(
        self, rank: int = 0, world_size: int = 1, objective: str = "full", reader: RowGroupReader | None = None
    ) -> TrainStream | ImpressionStream:
        reader = reader or self.reader
        batches = self.batches(rank, world_size)
        if self.kind.is_ranking:
            return ImpressionStream(reader, batches, Reach(MAX_HISTORY, MAX_HISTORY), self.catalogue)
        model = NextItemConfig(max_history=MAX_HISTORY, objective=OBJECTIVES[objective])
        return TrainStream(reader, batches, model, self.catalogue)

    @cached_property
    def examples(self) -> list[Example]:
        """What an epoch should teach, read plainly from the files, sorted."""
        result: list[Example] = []
        for number, row in enumerate(plain_rows(self.folder, self.manifest)):
            if self.kind.is_ranking:
                result.append(plain_impressions(number, row))
            else:
                result += plain_windows(number, row["item"][: row["train_end"]], self.kind.long_histories == "windows")
        return sorted(result)


def plain_windows(number: int, items: list[int], all_windows: bool) -> list[Example]:
    """Return the windows of a training history, from the most recent one backwards."""
    result: list[Example] = []
    stop = max(0, len(items) - 1)  # the last event is a target only
    while stop > 0 or not result:
        start = max(0, stop - MAX_HISTORY)
        result.append(
            (number + len(result) * WINDOW_STEP, tuple(items[start:stop]), tuple(items[start + 1 : stop + 1]))
        )
        stop = start if all_windows else 0
    return result


def plain_impressions(number: int, row: dict[str, Any]) -> Example:
    """Return the training impressions of a row, and the events from max_history before the first to the last that any may see."""
    count = row["train_end"]
    ends = row["impression.history_end"][:count]
    start = max(0, min(ends, default=0) - MAX_HISTORY)
    history = row["item"][start : max(ends, default=0)]
    labels = [(name, tuple(row[f"label.{name}"][:count])) for name in ("click", "like")]
    candidates = tuple(row["impression.item"][:count]), tuple(row["impression.time"][:count])
    return (number, tuple(history), *candidates, tuple(end - start for end in ends), tuple(labels))


def examples_in(step: Step[HistoryBatch] | Step[RankingBatch]) -> tuple[Example, ...]:
    """Return the examples that a rank trains in a step."""
    batch = step.batch
    if isinstance(batch, RankingBatch):
        return tuple(ranking_examples(batch))
    inputs, targets = pieces(batch.lookup_ids[batch.history_index], batch.layout.offsets), batch.target_ids
    assert batch.lookup_ids[batch.target_index].tolist() == targets.tolist()
    assert batch.lookup_ids.tolist() == sorted(set(batch.lookup_ids.tolist()))
    return tuple(zip(batch.row_ids.tolist(), inputs, pieces(targets, batch.layout.offsets), strict=True))


def ranking_examples(batch: RankingBatch) -> Iterable[Example]:
    shown = (batch.candidate_ids, batch.shown_at, batch.history_end, *batch.labels.values())
    columns = [pieces(column, batch.candidate_offsets) for column in shown]
    histories = pieces(batch.lookup_ids[batch.history_index], batch.layout.offsets)
    for row_id, history, items, times, ends, *labels in zip(batch.row_ids.tolist(), histories, *columns, strict=True):
        yield (row_id, history, items, times, ends, tuple(zip(batch.labels, labels, strict=True)))


def pieces(values: torch.Tensor, offsets: torch.Tensor) -> list[tuple[Any, ...]]:
    listed, bounds = values.tolist(), offsets.tolist()
    assert bounds[-1] == len(listed)
    return [tuple(listed[start:stop]) for start, stop in pairwise(bounds)]


@dataclass(frozen=True)
class GlobalStep:
    """One step of all ranks together; `shares`: examples of each rank, in its order."""

    shares: tuple[tuple[Example, ...], ...]
    negatives: tuple[int, ...]
    epoch: int
    after: Position

    @property
    def ids(self) -> list[int]:
        return sorted(example[0] for share in self.shares for example in share)

    @property
    def content(self) -> tuple[tuple[Example, ...], tuple[int, ...], int, Position]:
        return tuple(sorted(e for share in self.shares for e in share)), self.negatives, self.epoch, self.after


def global_steps(data: Data, start: Position, world_size: int, objective: str = "full") -> list[GlobalStep]:
    """Return all ranks' streams side by side. Checks what every rank owes the others on the way."""
    streams = [list(data.stream(rank, world_size, objective).steps(start, EPOCHS)) for rank in range(world_size)]
    assert len({len(steps) for steps in streams}) == 1, "ranks yield different numbers of steps"
    steps = []
    for shares in zip(*streams, strict=True):
        assert len({(step.epoch, step.after) for step in shares}) == 1, "ranks disagree on the position"
        negatives = {tuple(getattr(step.batch, "negative_ids", torch.empty(0)).tolist()) for step in shares}
        assert len(negatives) == 1, "ranks draw different negatives"
        kept = []
        for step in shares:
            result = examples_in(step)
            if any(example[0] == EMPTY_ROW for example in result):
                assert len(result) == 1, "an empty share is one empty history and nothing else"
                assert step.batch.layout.num_events == 0
                result = ()
            kept.append(result)
        steps.append(GlobalStep(tuple(kept), negatives.pop(), shares[0].epoch, shares[0].after))
    return steps
