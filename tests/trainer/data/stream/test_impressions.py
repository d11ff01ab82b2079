"""Impressions: what each may see, against brute force; each row once per epoch, each held-out impression once, on any ranks."""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.features.inputs import Inputs
from models.features.items import Catalogue
from models.features.time import Clock
from models.ranking.batch import RankingBatch
from models.ranking.micro_batches import parts_of
from models.ranking.reach import Reach
from tests.support.datasets import tiny_ranking_dataset
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import Split
from trainer.data.stream import global_batches
from trainer.data.stream import shares as shares_module
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.held_out import Deal
from trainer.data.stream.impressions import HeldOutImpressions, ImpressionStream, impression_examples
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.data.stream.shares import EMPTY_ROW, Step

MAX_HISTORY, BATCH, EPOCHS, NUM_ITEMS = 4, 7, 2, 15
REACH = Reach(MAX_HISTORY, MAX_HISTORY + 3)
CATALOGUE = Catalogue(NUM_ITEMS + 1, NUM_ITEMS + 1, inputs=Inputs(clock=Clock(1, ("gap", "hour"))))
Seen = dict[tuple[str, int, int], tuple[float, tuple[tuple[int, int], ...]]]  # impression: label, visible (item, time)


@dataclass(frozen=True)
class Logs:
    """shown: (user, item, time, click); past: (user, item, time)."""

    shown: list[tuple[str, int, int, float]]
    past: list[tuple[str, int, int]]

    def write(self, folder: Path) -> "Data":
        table = pa.table(dict(zip(("user", "item", "time", "label.click"), zip(*self.shown, strict=True), strict=True)))
        label = table.schema.get_field_index("label.click")
        table = table.set_column(label, "label.click", table.column("label.click").cast(pa.float32()))
        past = pa.table(dict(zip(("user", "item", "time"), zip(*self.past, strict=True), strict=True)))
        return Data(folder, tiny_ranking_dataset(folder, table, past))

    def visible(self, low: int, high: int) -> Seen:
        """Return, by brute force, the last events strictly before each impression in [low, high)."""
        events = list(dict.fromkeys([*self.past, *((u, i, t) for u, i, t, click in self.shown if click > 0)]))
        result: Seen = {}
        for user, item, time, click in self.shown:
            if low <= time < high:
                before = sorted(((i, t) for u, i, t in events if u == user and t < time), key=lambda e: e[1])
                result[user, item, time] = click, tuple(before[-MAX_HISTORY:])
        return result


@dataclass(frozen=True)
class Data:
    folder: Path
    manifest: Manifest

    def reader(self, cache_bytes: int = 1 << 20) -> RowGroupReader:
        return RowGroupReader(
            self.folder,
            self.manifest,
            ColumnSelection(users=True, times=True, impressions=True, numbers=True),
            cache_bytes,
        )

    @property
    def users(self) -> list[str]:
        """By row id."""
        reader = self.reader()
        return [
            user for group in range(len(reader.group_rows)) for user in reader.read([group])[group].users.to_pylist()
        ]

    def stream(self, rank: int = 0, world_size: int = 1, cache_bytes: int = 1 << 20) -> ImpressionStream:
        reader = self.reader(cache_bytes)
        examples = impression_examples(reader, self.manifest.counts.train_events, MAX_HISTORY)
        batches = GlobalBatches(examples, BATCH, None, 3, rank, world_size)
        return ImpressionStream(reader, batches, REACH, CATALOGUE)

    def seen(self) -> Seen:
        users = self.users
        return {k: v for step in self.stream().steps(Position(0, 0), 1) for k, v in seen_in(step.batch, users).items()}


def random_logs(seed: int = 0) -> Logs:
    """Return many ties in time; users a.. only with impressions, users z.. only with a past; no duplicates of impressions."""
    random = np.random.default_rng(seed)
    shown = {
        (
            f"{'a' if u < 6 else 'm'}{u:02d}",
            int(random.integers(1, NUM_ITEMS + 1)),
            int(random.integers(0, 100)) // 2 * 2,
        )
        for u in random.integers(0, 30, size=400).tolist()
    }
    past = [
        (f"{'m' if u < 30 else 'z'}{u:02d}", int(random.integers(1, NUM_ITEMS + 1)), int(random.integers(-20, 120)))
        for u in random.integers(6, 36, size=300).tolist()
    ]
    catalogue = [("z99", item, 0) for item in range(1, NUM_ITEMS + 1)]  # so that number k is item k
    return Logs([(*one, float(random.random() < 0.4)) for one in sorted(shown)], [*past, *catalogue])


def examples_of(batch: RankingBatch) -> list[tuple[Any, ...]]:
    """Return the rows: (row id, history (item, time), candidates (item, time, history_end, click))."""
    items = batch.lookup_ids[batch.history_index].tolist()
    assert batch.times is not None
    assert batch.candidate_times is not None
    events, candidates = batch.layout.offsets.tolist(), batch.candidate_offsets.tolist()
    assert batch.history_of.tolist() == [b for b in range(len(events) - 1) for _ in range(*candidates[b : b + 2])]
    # Times in a batch count from the first event of its history, and those of its candidates tell when that was.
    times = batch.times.clone()
    for b, (first, stop) in enumerate(pairwise(events)):
        if first < stop:
            (start,) = set((batch.shown_at - batch.candidate_times)[batch.history_of == b].tolist())
            assert times[first] == 0
            times[first:stop] += start
        else:
            assert not batch.candidate_times[batch.history_of == b].any()
    history = list(zip(items, times.tolist(), strict=True))
    assert batch.lookup_ids[batch.candidate_index].equal(batch.candidate_ids)
    assert len(set(batch.lookup_ids.tolist())) == batch.lookup_ids.numel()
    columns = (batch.candidate_ids, batch.shown_at, batch.history_end, batch.labels["click"])
    shown = list(zip(*(column.tolist() for column in columns), strict=True))
    return [
        (row, tuple(history[events[b] : events[b + 1]]), tuple(shown[candidates[b] : candidates[b + 1]]))
        for b, row in enumerate(batch.row_ids.tolist())
        if row != EMPTY_ROW
    ]


def seen_in(batch: RankingBatch, users: list[str]) -> Seen:
    result: Seen = {}
    for row, history, shown in examples_of(batch):
        for item, time, history_end, click in shown:
            assert (users[row], item, time) not in result
            result[users[row], item, time] = click, history[:history_end][-MAX_HISTORY:]
    return result


def global_steps(data: Data, start: Position, world_size: int) -> list[tuple[Any, ...]]:
    streams = [list(data.stream(rank, world_size).steps(start, EPOCHS)) for rank in range(world_size)]
    assert len({len(steps) for steps in streams}) == 1, "ranks yield different numbers of steps"
    return [content(step) for step in zip(*streams, strict=True)]


def content(shares: tuple[Step[RankingBatch], ...]) -> tuple[Any, ...]:
    assert len({(share.epoch, share.after) for share in shares}) == 1, "ranks disagree on the position"
    return sorted(e for share in shares for e in examples_of(share.batch)), shares[0].epoch, shares[0].after


@pytest.fixture(scope="module")
def logs() -> Logs:
    return random_logs()


@pytest.fixture(scope="module")
def data(tmp_path_factory, logs) -> Data:
    return logs.write(tmp_path_factory.mktemp("ranking"))


def test_impressions_see_the_events_strictly_before_them(data, logs):
    actual = data.seen()
    assert actual == logs.visible(-1000, 60)
    assert {len(history) for _, history in actual.values()} == set(range(MAX_HISTORY + 1))


def test_as_much_is_gathered_before_the_first_impression_as_scores_depend_on(data):
    """And no more, of histories that have more."""
    before_first = set()
    for held in HeldOutImpressions(Deal(data.reader(), 8, 0, 1), CATALOGUE, "test", REACH).batches():
        for _, history, shown in examples_of(held.batch):
            ends = [end for *_, end, _ in shown]
            assert len(history) == max(ends)
            before_first.add(min(ends))
    assert len(before_first) > 2
    assert max(before_first) == REACH.receptive


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 13])
@pytest.mark.parametrize(("split", "low", "high"), [("validation", 60, 80), ("test", 80, 1000)])
def test_each_held_out_impression_comes_exactly_once(
    data: Data, logs: Logs, split: Split, low: int, high: int, world_size: int
) -> None:
    users, actual, num_batches = data.users, Seen(), set()
    for rank in range(world_size):
        held = HeldOutImpressions(Deal(data.reader(), 8, rank, world_size), CATALOGUE, split, REACH)
        batches = list(held.batches())
        num_batches.add(len(batches))
        assert len(batches) == held.num_batches()
        for batch in batches:
            assert [users[row] for row in batch.row_ids.tolist()] == batch.users.to_pylist()
            new = seen_in(batch.batch, users)
            assert not new.keys() & actual.keys()
            actual |= new
    assert len(num_batches) == 1, "ranks have different numbers of batches"
    assert actual == logs.visible(low, high)


def test_later_events_change_nothing_that_an_earlier_impression_sees(tmp_path: Path, logs: Logs) -> None:
    moved = [(u, NUM_ITEMS + 1 - i, t + 7) if t >= 30 else (u, i, t) for u, i, t in logs.past]
    added = [(u, 5, t) for u, _, t, _ in logs.shown if t >= 30]
    before, after = logs.write(tmp_path / "a").seen(), Logs(logs.shown, [*moved, *added]).write(tmp_path / "b").seen()
    early = [key for key in before if key[2] <= 30]
    assert len(early) > 50
    assert [after[key] for key in early] == [before[key] for key in early]
    assert after != before


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_position_gives_the_identical_remainder_and_every_row_once(data, world_size):
    whole = global_steps(data, Position(0, 0), 1)
    for epoch in range(EPOCHS):
        rows = [example[0] for examples, of, _ in whole if of == epoch for example in examples]
        assert sorted(rows) == list(range(data.manifest.num_rows))
    for number, start in enumerate([Position(0, 0), *(step[2] for step in whole)]):
        assert global_steps(data, start, world_size) == whole[number:]


def test_the_world_may_change_at_every_step(data):
    whole, position, actual = global_steps(data, Position(0, 0), 1), Position(0, 0), []
    for number in range(len(whole)):
        actual.append(global_steps(data, position, 1 + number % 4)[0])
        position = actual[-1][2]
    assert actual == whole


@pytest.mark.parametrize("size", [1, 40])
def test_the_size_of_chunks_blocks_and_cache_changes_nothing(data, monkeypatch, size):
    whole = [examples_of(step.batch) for step in data.stream(1, 2).steps(Position(0, 0), EPOCHS)]
    monkeypatch.setattr(global_batches, "CHUNK_EVENTS", size)
    monkeypatch.setattr(global_batches, "MAX_CHUNK_EXAMPLES", size)
    monkeypatch.setattr(shares_module, "BLOCK_EVENTS", size)
    assert [examples_of(step.batch) for step in data.stream(1, 2, 0).steps(Position(0, 0), EPOCHS)] == whole


def test_pieces_of_batches_are_the_batches(data):
    """The same examples, in the same order, fewer at a time."""
    num_pieces = 0
    for whole, cut in zip(
        data.stream().steps(Position(0, 0), 1),
        replace(data.stream(), micro_batch_tokens=30).steps(Position(0, 0), 1),
        strict=True,
    ):
        parts = list(parts_of(cut.batch))
        num_pieces += len(parts) > 1
        assert [example for part in parts for example in examples_of(part)] == examples_of(whole.batch)
    assert num_pieces > 2
