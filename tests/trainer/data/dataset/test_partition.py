"""One partition against a plain Python grouping, the split, the partition hash, and how parts are written."""

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharding.config import VocabularyIdsConfig
from trainer.config.split import GlobalTimeConfig, LeaveOneOutConfig
from trainer.data.dataset.features import Ids
from trainer.data.dataset.grouping import DUPLICATE, partition_events, sort_vocabulary, stable_order
from trainer.data.dataset.hashing import hash_ids
from trainer.data.dataset.partition import Grouped, group_partition, sum_counts
from trainer.data.dataset.partition_events import GroupPlan, PartitionInput
from trainer.data.dataset.profile import TimeBins
from trainer.data.dataset.splits import Cuts, LeaveOneOut, TimeBounds, resolve_cuts
from trainer.data.dataset.writer import OldGroups, numbered, row_group_bounds, write_catalogue, write_part
from trainer.errors import UserError
from trainer.storage.files import hash_file

Event = tuple[Any, Any, int]


def table(events: list[Event]) -> pa.Table:
    users, items, times = zip(*events, strict=True)
    return pa.table({"user": users, "item": items, "time": pa.array(times, pa.int64())})


def catalogue_of(events: list[Event], cuts: Cuts) -> pa.Array:
    """Known items before the others, as prepare orders them."""
    of_type = pa.array([events[0][1]]).type
    known = {item for _, item, time in events if isinstance(cuts, LeaveOneOut) or time < cuts.validation_time}
    others = {item for _, item, _ in events} - known
    return pa.concat_arrays([sort_vocabulary(pa.chunked_array([list(items)], of_type)) for items in (known, others)])


def group(events: list[Event], catalogue: pa.Array, cuts: Cuts, drop_duplicates: bool) -> Grouped:
    ids = {"item": Ids(VocabularyIdsConfig(), catalogue)}
    return group_partition(PartitionInput(table(events)), GroupPlan(cuts, ids, (), TimeBins(0, 9), drop_duplicates))


def duplicates_of(result: Grouped) -> list[int]:
    return result.rejected.get(("logs", DUPLICATE), np.zeros(0, np.int64)).tolist()


def grouped_plainly(events: list[Event], cuts: Cuts, drop_duplicates: bool) -> list[dict[str, Any]]:
    """Compute what trainer/data/dataset/manifest.py promises, as slowly and plainly as possible."""
    ids = {item: place + 1 for place, item in enumerate(catalogue_of(events, cuts).to_pylist())}
    kept = list(dict.fromkeys(events)) if drop_duplicates else events
    rows = []
    for user in sorted({user for user, _, _ in kept}):
        history = sorted((e for e in kept if e[0] == user), key=lambda e: e[2])  # stable: ties stay in the log's order
        times = [time for _, _, time in history]
        if isinstance(cuts, LeaveOneOut):
            held_out = len(history) >= cuts.min_events
            train_end, validation_end = len(history) - 2 * held_out, len(history) - held_out
        else:
            train_end = sum(time < cuts.validation_time for time in times)
            validation_end = sum(time < cuts.test_time for time in times)
        rows.append(
            {
                "user": user,
                "item": [ids[item] for _, item, _ in history],
                "time": times,
                "train_end": train_end,
                "validation_end": validation_end,
            }
        )
    return rows


def random_events(seed: int, strings: bool) -> list[Event]:
    choose = random.Random(seed)
    count = choose.choice([1, 5, 50, 400])
    events = [
        (choose.randint(-5, 20), choose.randint(0, 12), choose.choice([-(2**62), 0, 1, 5, 9, 2**62]))
        for _ in range(count)
    ]
    return [(f"ü{user}", f"item {item}", time) for user, item, time in events] if strings else list(events)


@pytest.mark.parametrize("cuts", [LeaveOneOut(3), LeaveOneOut(6), TimeBounds(1, 6)], ids=str)
@pytest.mark.parametrize("strings", [False, True], ids=["integers", "strings"])
@pytest.mark.parametrize("drop_duplicates", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_grouping_equals_a_plain_one(seed: int, drop_duplicates: bool, strings: bool, cuts: Cuts) -> None:
    events = random_events(seed, strings)
    result = group(events, catalogue_of(events, cuts), cuts, drop_duplicates)
    expected = grouped_plainly(events, cuts, drop_duplicates)
    assert result.rows.to_pylist() == expected

    trained = [(row["item"][: row["train_end"]], row["item"][row["train_end"] :]) for row in expected]
    num_events = Counter(item for row in expected for item in row["item"])
    num_train_events = Counter(item for train, _ in trained for item in train)
    counts, items = result.counts, result.items
    assert dict(zip(items.numbers.tolist(), items.num_events.tolist(), strict=True)) == num_events
    assert Counter(dict(zip(items.numbers.tolist(), items.num_train_events.tolist(), strict=True))) == num_train_events
    assert counts.rows_kept + len(duplicates_of(result)) == len(events)
    assert counts.num_users == len(expected)
    assert counts.train_events == sum(len(train) for train, _ in trained)
    assert counts.validation_targets == sum(row["validation_end"] - row["train_end"] for row in expected)
    assert counts.test_targets == sum(len(row["item"]) - row["validation_end"] for row in expected)
    assert counts.users_without_targets == sum(row["train_end"] < 2 for row in expected)
    assert counts.tied_times == sum(
        row["time"][k] == row["time"][k - 1] for row in expected for k in range(1, len(row["time"]))
    )


def test_the_first_of_equal_events_stays_even_with_a_tie_between() -> None:
    events = [(1, 8, 5), (1, 7, 5), (1, 8, 5), (2, 8, 5), (1, 8, 4), (1, 8, 5)]
    result = group(events, pa.array([7, 8]), LeaveOneOut(3), drop_duplicates=True)
    assert duplicates_of(result) == [2, 5]
    assert result.rows.column("item").to_pylist() == [[2, 2, 1], [2]]
    assert result.counts.rows_kept == 4


def test_a_user_with_one_event_trains_nothing_and_is_not_evaluated() -> None:
    counts = group([("a", 1, 1)], pa.array([1]), LeaveOneOut(3), True).counts
    assert (counts.users_without_targets, counts.users_not_evaluated) == (1, 1)
    assert (counts.train_events, counts.validation_targets, counts.test_targets) == (1, 0, 0)


@pytest.mark.parametrize("strings", [False, True], ids=["integers", "strings"])
def test_a_share_of_the_users_is_validated_and_all_are_tested(strings: bool) -> None:
    """Which users is a function of their ids alone: neither of other users nor of the share, which only lets more in."""
    events = [(f"user {u}" if strings else u, item, item) for u in range(2000) for item in range(3 + u % 3)]

    def validated(events: list[Event], share: float) -> set[Any]:
        rows = group(events, pa.array(range(6)), LeaveOneOut(4, share), drop_duplicates=True).rows.to_pylist()
        for row in rows:
            tested = len(row["item"]) >= 4
            assert row["validation_end"] == len(row["item"]) - tested
            assert row["validation_end"] - row["train_end"] in ((0, 1) if tested else (0,))
        return {row["user"] for row in rows if row["train_end"] < row["validation_end"]}

    some, more = validated(events, 0.2), validated(events, 0.5)
    assert abs(len(some) / (2000 * 2 / 3) - 0.2) < 0.04
    assert some < more < validated(events, 1.0)
    assert validated(events[: len(events) // 2], 0.5) == {
        user for user in more if (user,) in {(e[0],) for e in events[: len(events) // 2]}
    }


def test_partitioning_of_any_blocks_is_complete_and_keeps_order() -> None:
    events = table([(f"user {n % 97}", n, n) for n in range(1000)])
    whole = partition_events(events, 7)
    blocks = [partition_events(events.slice(start, 130), 7) for start in range(0, 1000, 130)]
    for partition, batch in enumerate(whole):
        assert pa.Table.from_batches([batch]) == pa.Table.from_batches([b[partition] for b in blocks]).combine_chunks()
        assert batch.column("time").to_pylist() == sorted(batch.column("time").to_pylist())
    users = [set(batch.column("user").to_pylist()) for batch in whole]
    assert sum(map(len, users)) == len(set.union(*users)) == 97
    assert sum(batch.num_rows for batch in whole) == 1000
    assert [batch.num_rows for batch in partition_events(events.slice(0, 0), 3)] == [0, 0, 0]


def test_the_hash_is_fixed_for_ever() -> None:
    """Datasets on disk and workers on other machines rely on these very numbers."""
    integers = hash_ids(pa.chunked_array([pa.array([0, 1, -1, 2**63 - 1])]))
    strings = hash_ids(pa.chunked_array([["a", "b"], ["ab", "ba", "a", "ü" * 40]]))
    assert [f"{h:016x}" for h in integers] == INTEGER_HASHES
    assert [f"{h:016x}" for h in strings] == STRING_HASHES
    sliced = pa.chunked_array([pa.array(["zz", "ab", "ba"]).slice(1)])
    assert hash_ids(sliced).tolist() == strings[2:4].tolist()


INTEGER_HASHES = ["e220a8397b1dcdaf", "910a2dec89025cc1", "e4d971771b652c20", "2a67d7552e039ea7"]
STRING_HASHES = [
    "7daccfacf2b4fc40",
    "772638b7382a2bcc",
    "c5beaaf5cf3da7bf",
    "f79a56b0e224bfbc",
    "7daccfacf2b4fc40",
    "a11d59c58a66fc4d",
]


@pytest.mark.parametrize("as_strings", [False, True])
def test_the_hash_spreads_users_evenly(as_strings: bool) -> None:
    users = pa.array(range(0, 200_000, 2))
    hashes = hash_ids(pa.chunked_array([users.cast(pa.string()) if as_strings else users]))
    assert len(np.unique(hashes)) == len(users)
    shares = np.bincount((hashes % 64).astype(np.int64), minlength=64)
    assert abs(shares - len(users) / 64).max() < 5 * np.sqrt(len(users) / 64)


@pytest.mark.parametrize(
    "keys", [[], [3], [2**63 - 1, -(2**63), 0, -(2**63)], [1, 1, 0, 1], [70_000, 5, 70_000, 65_536, 5]]
)
def test_the_radix_sort_is_a_stable_sort(keys: list[int]) -> None:
    values = np.array(keys, np.int64)
    assert stable_order(values).tolist() == np.argsort(values, kind="stable").tolist()


def test_counts_add_up() -> None:
    one = group([(1, 1, 1), (1, 1, 2)], pa.array([1]), LeaveOneOut(3), True).counts
    assert sum_counts([one, one]).rows_kept == 4
    assert sum_counts([one, one]).num_users == 2


# The split


def test_iso_times_are_utc_and_become_microseconds() -> None:
    split = GlobalTimeConfig(
        kind="global_time", validation_time="1970-01-02", test_time="1970-01-02T02:00:00.000001+01:00"
    )
    assert resolve_cuts(split, "timestamp") == TimeBounds(86_400_000_000, 90_000_000_001)
    assert resolve_cuts(LeaveOneOutConfig(min_events=4), "integer") == LeaveOneOut(4)


@pytest.mark.parametrize(
    ("validation_time", "test_time", "kind", "words"),
    [
        (5, 6, "timestamp", ["split.validation_time", "integer", "ISO"]),
        ("2024-01-01", "2024-01-02", "integer", ["split.validation_time", "integers"]),
        ("2024-01-01", "2024-13-02", "timestamp", ["split.test_time", "2024-13-02"]),
        ("2024-01-01T00:00+00:00", "2024-01-01T01:00+02:00", "timestamp", ["not before"]),
    ],
)
def test_times_that_do_not_fit_are_refused(validation_time: Any, test_time: Any, kind: Any, words: list[str]) -> None:
    split = GlobalTimeConfig(kind="global_time", validation_time=validation_time, test_time=test_time)
    with pytest.raises(UserError) as caught:
        resolve_cuts(split, kind)
    for word in words:
        assert word in str(caught.value)


# Writing


@pytest.mark.parametrize("num_rows", [0, 1, 63, 64, 100, 6040, 300_000])
def test_row_groups_are_many_and_small(num_rows: int) -> None:
    bounds = row_group_bounds(np.arange(num_rows + 1) * 10)
    sizes = np.diff(bounds)
    assert bounds[0] == 0
    assert bounds[-1] == num_rows
    assert len(sizes) >= min(64, num_rows)
    assert all(1 <= size <= 4096 for size in sizes)


def test_heavy_users_get_row_groups_of_their_own() -> None:
    lengths = np.full(6400, 10)
    lengths[[500, 501, 502]] = 1_500_000, 5_000_000, 1_500_000
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    bounds = row_group_bounds(offsets)
    for first, last in pairwise(bounds):
        assert last - first == 1 or offsets[last] - offsets[first] <= 2_000_000


def test_a_part_reads_back_as_written_and_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    events = [(f"u{n % 150}", n * 7 % 31, n * n % 1000 - 500) for n in range(3000)]
    result = group(events, catalogue_of(events, LeaveOneOut(3)), LeaveOneOut(3), True)
    nothing = OldGroups((), (0,))
    part, again = (write_part(tmp_path / name, result.rows, 0, 0, nothing) for name in ("part-0.parquet", "b"))
    read = pq.read_table(tmp_path / part.path, page_checksum_verification=True)
    assert read.to_pylist() == result.rows.to_pylist()
    assert str(read.schema.field("item").type.value_type) == "int32"
    assert str(read.schema.field("time").type.value_type) == "int64"
    assert part.sha256 == again.sha256 == hash_file(tmp_path / part.path)
    metadata = pq.ParquetFile(tmp_path / part.path).metadata
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [
        g.num_rows for g in part.row_groups
    ]
    assert len(part.row_groups) == 64
    assert sum(group.num_events for group in part.row_groups) == result.counts.rows_kept
    assert [g.group for p in numbered([part, again], 7) for g in p.row_groups] == list(range(7, 7 + 128))


@pytest.mark.parametrize("values", [pa.array([3, 5]), pa.array(["a", "b"])])
def test_the_catalogue_reads_back(tmp_path: Path, values: pa.Array) -> None:
    ids = np.array([0, 1], np.int32)
    entry = write_catalogue(tmp_path / "v.parquet", values, ids, np.array([2, 3]), np.array([0, 1]))
    assert (entry.path, entry.sha256, entry.num_rows) == ("v.parquet", hash_file(tmp_path / "v.parquet"), 2)
    assert pq.read_table(tmp_path / "v.parquet").to_pydict() == {
        "value": values.to_pylist(), "id": [0, 1], "num_events": [2, 3], "num_train_events": [0, 1],
    }  # fmt: skip
