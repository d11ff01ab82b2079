"""Every check of the data card can fail, and does so at its threshold."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config.run_config import check_config
from cluster.data.prepare import prepare
from trainer.data.dataset.checks import checks_of
from trainer.data.dataset.leakage import LeakyFeature
from trainer.data.dataset.manifest import Manifest

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Return the profile of a global-time split without any problem."""
    rows = [
        {"user_id": user, "item_id": (7 * user + place) % 50 + 1, "time": 10 * place}
        for user in range(40)
        for place in range(30)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "logs.parquet")
    split = {"kind": "global_time", "validation_time": 200, "test_time": 250}
    logs, run = {"path": str(tmp_path / "logs.parquet")}, {"dataset": str(tmp_path / "dataset")}
    result = prepare(check_config({"run": run, "logs": logs, "split": split}, "test"), lambda _: None)
    assert {check.verdict for check in checks_of(result, [])} == {"ok"}
    return result


def verdict_of(manifest: Manifest, name: str, leaky_features: tuple[LeakyFeature, ...] = ()) -> str:
    return next(check.verdict for check in checks_of(manifest, leaky_features) if check.name == name)


PROFILES: list[tuple[str, dict[str, Any], str]] = [
    ("time_order", {"time_range": {"train": [0, 250], "validation": [200, 240], "test": [250, 290]}}, "problem"),
    ("time_order", {"time_range": {"train": [0, 250], "validation": None, "test": [250, 290]}}, "problem"),
    ("time_order", {"time_range": {"train": [0, 249], "validation": None, "test": [250, 290]}}, "ok"),
    ("repeated_test_targets", {"sampled_test_targets": 100, "repeated_test_targets": 4}, "ok"),
    ("repeated_test_targets", {"sampled_test_targets": 100, "repeated_test_targets": 5}, "look"),
    ("repeated_test_targets", {"sampled_test_targets": 100, "repeated_test_targets": 50}, "problem"),
    ("test_users_without_training", {"test_users_without_training": 1}, "ok"),
    ("test_users_without_training", {"test_users_without_training": 2}, "look"),
    ("test_users_without_training", {"test_users_without_training": 20}, "problem"),
    ("unknown_test_targets", {"unknown_targets": {"validation": 0, "test": 1}}, "ok"),
    ("unknown_test_targets", {"unknown_targets": {"validation": 0, "test": 2}}, "look"),
    ("unknown_test_targets", {"unknown_targets": {"validation": 0, "test": 40}}, "problem"),
    ("test_items_with_training", {"items": {"train": 9, "validation": 9, "test": 10}, "test_items_with_training": 10}, "ok"),
    ("test_items_with_training", {"items": {"train": 9, "validation": 9, "test": 10}, "test_items_with_training": 8}, "look"),
    ("test_items_with_training", {"items": {"train": 9, "validation": 9, "test": 10}, "test_items_with_training": 4}, "problem"),
    ("tied_order", {"tied_order": {"ascending": 59, "descending": 41, "users": 100, "squares": 18**2 // 9}}, "ok"),
    ("tied_order", {"tied_order": {"ascending": 60, "descending": 40, "users": 100, "squares": 44}}, "look"),
    ("tied_order", {"tied_order": {"ascending": 60, "descending": 40, "users": 100, "squares": 45}}, "ok"),
    ("tied_order", {"tied_order": {"ascending": 25, "descending": 75, "users": 100, "squares": 200}}, "problem"),
    ("outlying_times", {"events_over_time": {"train": [1, *[0] * 58, 999], "validation": [0] * 60, "test": [0] * 60}}, "ok"),
    ("outlying_times", {"events_over_time": {"train": [1, 1, *[0] * 57, 999], "validation": [0] * 60, "test": [0] * 60}}, "look"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changed", "verdict"), PROFILES)
def test_verdicts_follow_the_profile(manifest: Manifest, name: str, changed: dict[str, Any], verdict: str) -> None:
    assert verdict_of(replace(manifest, profile=manifest.profile | changed), name) == verdict


@pytest.mark.parametrize(
    ("name", "changed", "verdict"),
    [
        ("tied_times", {"tied_times": 59}, "ok"),
        ("tied_times", {"tied_times": 60}, "look"),
        ("tied_times", {"tied_times": 1_199}, "problem"),
        ("duplicates", {"rejected": {"duplicate": 11}}, "ok"),
        ("duplicates", {"rejected": {"duplicate": 12}}, "look"),
        ("duplicates", {"rejected": {"duplicate": 240, "null user": 1}}, "problem"),
        ("empty_splits", {"test_targets": 0}, "look"),
    ],
)
def test_verdicts_follow_the_counts(manifest: Manifest, name: str, changed: dict[str, Any], verdict: str) -> None:
    assert verdict_of(replace(manifest, counts=replace(manifest.counts, **changed)), name) == verdict


def ranking(manifest: Manifest, train: int, test: int) -> Manifest:
    """Return the same with so many positives among 800 training and 200 test impressions."""
    labels = {
        "names": ["click"],
        "outcomes": [],
        "positives": {"click": {"train": train, "validation": 0, "test": test}},
    }
    return replace(manifest, task="ranking", labels=labels)


@pytest.mark.parametrize(
    ("train", "test", "verdict"),
    [(400, 100, "ok"), (400, 130, "look"), (200, 110, "problem"), (0, 50, "problem"), (0, 0, "ok"), (8, 3, "ok")],
)
def test_drift_is_measured_against_chance(manifest: Manifest, train: int, test: int, verdict: str) -> None:
    changed = ranking(manifest, train, test)
    assert (changed.counts.train_events, changed.counts.test_targets) == (800, 200)
    assert verdict_of(changed, "drift.click") == verdict


def test_a_strong_feature_is_flagged_from_its_threshold_on(manifest: Manifest) -> None:
    changed = ranking(manifest, 400, 100)
    for area, verdict in ((0.949, "ok"), (0.95, "problem")):
        assert verdict_of(changed, "features_give_label_away", (LeakyFeature("f", "click", area),)) == verdict
    assert verdict_of(changed, "features_give_label_away") == "ok"


def test_a_feature_that_reads_a_label_is_a_problem(manifest: Manifest) -> None:
    """Settings refuse it, so only a dataset made otherwise can have one."""
    columns = {"logs": {"label.click": {"column": "click"}, "event.c": {"column": "click"}}}
    changed = replace(ranking(manifest, 400, 100), source=manifest.source | {"columns": columns})
    assert verdict_of(changed, "outcomes_apart") == "problem"
