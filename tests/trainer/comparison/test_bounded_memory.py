"""Comparisons with tables and arrays in temporary files: the same figures, and no memory that grows with the number of runs."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.evaluations import write_ranking_run, write_run
from trainer.comparison import mapped_tables
from trainer.comparison.comparison import Comparison, compare
from trainer.comparison.evaluations import read_evaluations
from trainer.comparison.impressions import read_impressions
from trainer.evaluation import spooled

NUM_USERS = 150


def figures_of(comparison: Comparison) -> list[Any]:
    """Return all differences and slices as plain values."""
    pairs = [[asdict(one) for one in (*pair.differences, *pair.slices)] for pair in comparison.pairs]
    return [pairs, comparison.repeated, [asdict(one) for one in comparison.unpaired], comparison.num_users]


def next_item_runs(folder: Path) -> list[Path]:
    """Write runs of two models with two seeds each, and of a third one with other users in another order."""
    random = np.random.default_rng(0)
    runs = [
        write_run(
            folder / f"{model}{seed}",
            random.integers(1, 40, NUM_USERS),
            seed=seed,
            settings={"x": {"y": model}},
            columns={"user.city": [f"city {number % 5}" for number in range(NUM_USERS)]},
        )
        for model in "ab"
        for seed in (1, 2)
    ]
    users = random.permutation(np.arange(10, NUM_USERS + 10))
    targets = [[int(user) % 500] for user in users]
    return [*runs, write_run(folder / "c", random.integers(1, 40, NUM_USERS), users=users.tolist(), targets=targets)]


def ranking_runs(folder: Path, num_runs: int = 3, num_users: int = 40, num_impressions: int = 700) -> list[Path]:
    """Write runs of ranking models, the last one without some users."""
    random = np.random.default_rng(0)
    user = np.sort(np.concatenate((np.arange(num_users), random.integers(0, num_users, num_impressions - num_users))))
    positive = random.random(num_impressions) < 0.4
    runs = []
    for number in range(num_runs):
        inside = user < num_users - 5 * (number == num_runs - 1)
        logits = positive * number / 2 + random.normal(size=num_impressions)
        settings = {"x": {"y": number}}
        runs.append(
            write_ranking_run(folder / str(number), user[inside], logits[inside], positive[inside], settings=settings)
        )
    return runs


def in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use blocks of few entries, and files for all arrays and tables."""
    monkeypatch.setattr(spooled, "BLOCK", 50)
    monkeypatch.setattr(spooled, "LEAST_BYTES", 0)
    monkeypatch.setattr(mapped_tables, "LEAST_BYTES", 0)


@pytest.mark.parametrize("common_users", [False, True])
@pytest.mark.parametrize("task", ["next_item", "ranking"])
def test_the_figures_are_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, common_users: bool
) -> None:
    runs = next_item_runs(tmp_path) if task == "next_item" else ranking_runs(tmp_path)
    asked = runs if common_users else runs[:-1]
    plain = compare(asked, num_resamples=100, common_users=common_users)
    assert any(pair.slices for pair in plain.pairs)
    in_files(monkeypatch)
    of_files = compare(asked, num_resamples=100, common_users=common_users)
    assert repr(figures_of(of_files)) == repr(figures_of(plain))


@pytest.mark.parametrize("num_runs", [2, 6])
def test_tables_of_runs_are_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_runs: int) -> None:
    runs = ranking_runs(tmp_path, num_runs, num_users=400, num_impressions=20_000)
    in_files(monkeypatch)
    before = pa.total_allocated_bytes()
    evaluations = read_evaluations([str(run) for run in runs], "test", None)
    impressions = [read_impressions(evaluation) for evaluation in evaluations]
    assert all(one is not None and one.table.nbytes > 1_000_000 for one in impressions)
    assert pa.total_allocated_bytes() - before < 100_000
