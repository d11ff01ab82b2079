"""Evaluation of rankers with arrays in temporary files: the same bits, and no memory that grows with impressions."""

import hashlib
import json
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.merged_ranking import LABEL, write_parts
from tests.trainer.evaluation.ranking.scored import random_judged
from trainer.data.dataset.manifest import Manifest
from trainer.evaluation import spooled
from trainer.evaluation.ranking import tables
from trainer.evaluation.ranking.intervals import intervals_of
from trainer.evaluation.ranking.judged import MergedCounts, areas_of, count_scores, merge_counts
from trainer.evaluation.ranking.reliability import reliability, roc
from trainer.evaluation.ranking.results import summarize, values_of
from trainer.evaluation.ranking.scored import merge_parts

ITEMS = pa.array(range(100_000))
MANIFEST = Manifest(
    "f", {}, {"kind": "global_time", "validation_time": 1, "test_time": 2}, None, {}, (), task="ranking"
)  # type: ignore[arg-type]


def in_files(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Use blocks of few entries, and files for all arrays."""
    monkeypatch.setattr(spooled, "BLOCK", block)
    monkeypatch.setattr(spooled, "LEAST_BYTES", 0)


def evaluated(folder: Path, num_impressions: int, num_workers: int = 3) -> tuple[str, list[pa.Table]]:
    """Return metrics.json and the tables of an evaluation."""
    write_parts(folder / "parts", num_impressions, num_workers, group_rows=200)
    impressions = merge_parts(folder / "parts", (LABEL,))
    results = summarize(impressions, "test", "step", MANIFEST, 50, 1)
    tables.write(folder, results, impressions, ITEMS)
    names = ("per_impression.parquet", "per_user.parquet")
    return json.dumps(asdict(results)), [pq.read_table(folder / name) for name in names]


@pytest.mark.parametrize("block", [13, 500])
def test_files_and_tables_are_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    metrics, written = evaluated(tmp_path / "whole", 3000)
    in_files(monkeypatch, block)
    of_files, written_of_files = evaluated(tmp_path / "files", 3000, num_workers=1)
    assert hashlib.sha256(of_files.encode()).digest() == hashlib.sha256(metrics.encode()).digest()
    assert [table.equals(other) for table, other in zip(written, written_of_files, strict=True)] == [True, True]


@pytest.mark.parametrize("levels", [2, 30, None])
@pytest.mark.parametrize("negative_weight", [1.0, 10 / 3])
def test_figures_of_a_label_are_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, levels: int | None, negative_weight: float
) -> None:
    """Also with weights that are no binary fractions, of which every order of addition has other bits."""

    def figures() -> tuple[Any, ...]:
        judged = random_judged(4, 3000, 200, levels, negative_weight)
        judged.scores[::50] = np.where(levels is None, judged.scores[::50], np.nan)
        values = values_of(judged)
        curves = [curve.tolist() for curve in roc(judged.counts)]
        return values, intervals_of(judged, values), reliability(judged), curves

    before = figures()
    in_files(monkeypatch, 17)
    after = figures()
    assert repr(after) == repr(before)


def test_a_user_with_more_impressions_than_a_block_is_evaluated_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = values_of(random_judged(5, 2000, num_users=3))
    in_files(monkeypatch, 50)
    assert values_of(random_judged(5, 2000, num_users=3)) == whole


def test_counts_of_a_worker_are_kept_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [count_scores(random_judged(seed, 2_000, levels=None)) for seed in range(20)]
    expected = areas_of(merge_counts(shares))
    in_files(monkeypatch, 2048)
    merge_counts(shares[:2])  # what numpy imports at its first use is not counted
    tracemalloc.start()
    counts = MergedCounts()
    for share in shares:
        counts.add(share)
    merged = counts.merged()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(merged.scores, np.memmap)
    assert areas_of(merged) == expected
    assert peak < 40_000 * 3 * 8 / 3, "a third of the counts"


def peak_bytes(folder: Path, num_impressions: int) -> int:
    """Return the most memory of numpy, Python and Arrow while results are computed and written."""
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        write_parts(folder / "parts", num_impressions, 4, group_rows=500)
        impressions = merge_parts(folder / "parts", (LABEL,))
        results = summarize(impressions, "test", "step", MANIFEST, 50, 1)
        tables.write(folder, results, impressions, ITEMS)
        return tracemalloc.get_traced_memory()[1] + int(pool.max_memory() or 0)
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


@pytest.mark.slow
def test_the_memory_of_the_driver_does_not_grow_with_impressions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of an impression has more than 80 bytes, and its sorted scores and places 16 more."""
    in_files(monkeypatch, 1 << 10)
    monkeypatch.setattr("trainer.evaluation.part_writer.GROUP_BYTES", 1 << 17)
    # The first of three runs also counts what libraries import at their first use.
    _, few, many = (peak_bytes(tmp_path / str(count), count) for count in (3_000, 10_000, 40_000))
    assert (many - few) / 30_000 < 10
