"""Rows of workers, merged some users at a time: the same rows, the same figures, and no memory that grows with users."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.config.evaluate import EvaluateConfig
from trainer.data.dataset.manifest import Counts, Manifest
from trainer.evaluation import spooled
from trainer.evaluation.next_item import results as results_module
from trainer.evaluation.next_item.merged_rows import MergedRows, merge_parts
from trainer.evaluation.next_item.queries import one_row_per_user
from trainer.evaluation.next_item.results import Evaluated, Results, summarize

NUM_ITEMS = 50
TRAIN_EVENTS = np.arange(NUM_ITEMS, 0, -1)


def queries(num_users: int, seed: int, each: bool = False) -> pa.Table:
    """Return the rows of an evaluation: one of each user, or one of each target of a user."""
    random = np.random.default_rng(seed)
    per_user = random.integers(1, 4, size=num_users) if each else np.ones(num_users, np.int64)
    row_ids = np.repeat(np.sort(random.choice(num_users * 3, size=num_users, replace=False)), per_user)
    count = row_ids.size
    ends = np.arange(count + 1) if each else np.cumsum(np.append(0, random.integers(1, 3, size=count)))
    top = random.integers(0, NUM_ITEMS + 1, size=(count, 5))
    targets = random.integers(0, NUM_ITEMS + 1, size=ends[-1])
    places = random.integers(0, 30, size=(2, ends[-1]))

    def lists(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pa.array(values))

    def tops(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).astype(np.int32)), 5)

    return pa.table(
        {
            "row_id": row_ids,
            "user": [f"user {row}" for row in row_ids],
            "history_length": row_ids % 17 + 1,
            "targets": lists(targets),
            "ranks": lists(places[0]),
            "top_items": tops(top),
            "popularity_ranks": lists(places[1]),
            "popularity_top_items": tops(top[::-1]),
        }
    )


def write_parts(folder: Path, rows: pa.Table, num_parts: int, group_rows: int) -> MergedRows:
    """Divide users among parts, in row groups of some rows."""
    folder.mkdir(parents=True)
    ids = rows.column("row_id").to_numpy()
    owner = np.random.default_rng(1).integers(0, num_parts, size=int(ids.max()) + 1)[ids]
    for part in range(num_parts):
        own = rows.filter(pa.array(owner == part))
        pq.write_table(own, folder / f"rank-{part}.parquet", row_group_size=group_rows)
    return merge_parts(folder)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(("num_parts", "group_rows"), [(1, 1), (1, 1000), (3, 2), (7, 5), (40, 3)])
def test_blocks_are_the_rows_in_order(tmp_path, each, num_parts, group_rows):
    """Also where row groups of a part end between the queries of one user, and where parts have no rows."""
    rows = queries(60, seed=2, each=each)
    merged = write_parts(tmp_path / "parts", rows, num_parts, group_rows)
    expected = one_row_per_user(rows).to_pylist()
    assert merged.num_rows == len(expected) == 60
    assert merged.to_table(rows.column_names).to_pylist() == expected
    blocks = list(merged.blocks(["ranks"]))
    assert [block.column_names for block in blocks] == [["row_id", "ranks"]] * len(blocks)
    assert merged.take([0, 7, 59]).to_pylist() == [expected[place] for place in (0, 7, 59)]


def results_of(merged: MergedRows, each: bool) -> tuple[Results, Any]:
    counts = Counts(100, 100, {}, 12, NUM_ITEMS, 80, 10, 10, 0, 0, 0, 0)
    manifest = Manifest("f", {}, {"kind": "leave_one_out", "min_events": 3}, counts, {}, ())
    config = EvaluateConfig(ks=[1, 5], targets="each" if each else "all")
    return summarize(merged, Evaluated("test", "step", config, manifest, TRAIN_EVENTS, "all"))


@pytest.mark.parametrize("each", [False, True])
def test_figures_depend_neither_on_parts_nor_on_temporary_files(tmp_path, each, monkeypatch):
    rows = queries(300, seed=3, each=each)
    alone, columns = results_of(write_parts(tmp_path / "alone", rows, 1, 1000), each)
    monkeypatch.setattr(spooled, "LEAST_BYTES", 0)
    shared, of_shared = results_of(write_parts(tmp_path / "shared", rows, 4, 7), each)
    assert shared == alone
    for name, values in columns.items():
        assert isinstance(of_shared[name].values, np.memmap)
        assert (of_shared[name].values == values.values).all()
        assert (of_shared[name].shares == values.shares).all()


@pytest.mark.parametrize("each", [False, True])
def test_the_size_of_blocks_changes_nothing_but_the_rounding_of_sums(tmp_path, each, monkeypatch):
    merged = write_parts(tmp_path / "parts", queries(300, seed=4, each=each), 3, 50)
    whole, _ = results_of(merged, each)
    monkeypatch.setattr(spooled, "BLOCK", 7)
    blocks, _ = results_of(merged, each)
    assert blocks.metrics == pytest.approx(whole.metrics, rel=1e-12)
    assert blocks.baselines["popularity"] == pytest.approx(whole.baselines["popularity"], rel=1e-12)
    for name, bounds in whole.ci95.items():
        assert blocks.ci95[name] == pytest.approx(bounds, rel=1e-9)


def peak_bytes(folder: Path, num_users: int) -> int:
    """Return the most memory of numpy, Python and Arrow while results are summarized and written."""
    merged = write_parts(folder / "parts", queries(num_users, seed=5), 4, 500)
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        results, columns = results_of(merged, each=False)
        results_module.write(folder, results, merged, columns, pa.array(range(NUM_ITEMS)))
        return tracemalloc.get_traced_memory()[1] + int(pool.max_memory() or 0)
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


@pytest.mark.slow
def test_the_memory_of_the_driver_does_not_grow_with_lists_and_metrics(tmp_path, monkeypatch):
    """Lists of the model and a baseline, and the values of all metrics, take 450 bytes of each user."""
    monkeypatch.setattr(spooled, "LEAST_BYTES", 0)
    monkeypatch.setattr(spooled, "BLOCK", 1 << 10)
    monkeypatch.setattr("trainer.evaluation.part_writer.GROUP_BYTES", 1 << 18)
    few, many = (peak_bytes(tmp_path / str(count), count) for count in (10_000, 50_000))
    assert (many - few) / 40_000 < 100
