"""Features that give a label away are found, honest ones are not, and only training impressions are looked at."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config.run_config import Config, check_config
from cluster.data.prepare import prepare
from trainer.data.dataset import leakage
from trainer.data.dataset.checks import LEAKY_AUC
from trainer.data.dataset.leakage import auc, leaky_features, separation, training_sample
from trainer.data.dataset.manifest import Manifest

NUM = 4_000
random = np.random.default_rng(3)
POSITIVE = random.random(NUM) < 0.3
NOISY = np.where(random.random(NUM) < 0.02, ~POSITIVE, POSITIVE)  # the label, wrong in one of fifty


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_pairs_in_the_right_order(seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores, positive = draw.integers(0, 6, 60), draw.random(60) < 0.4
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    assert auc(scores, positive) == pytest.approx(np.mean(pairs), abs=1e-12)


def lists(entries: list[list[int]]) -> pa.Array:
    return pa.array(entries, pa.list_(pa.int32()))


def vectors(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).astype(np.float32)), values.shape[1])


NOISE = random.normal(size=NUM)
LEAKS = {
    "a number": ("numeric", pa.array((NOISY + 0.1 * NOISE).astype(np.float32))),
    "a number that falls": ("numeric", pa.array((0.1 * NOISE - 5 * NOISY).astype(np.float32))),
    "a number missing for negatives": ("numeric", pa.array(np.where(NOISY, NOISE, np.nan).astype(np.float32))),
    "a number missing for positives": ("numeric", pa.array(np.where(NOISY, np.nan, NOISE).astype(np.float32))),
    "a number in buckets": ("bucketized", pa.array((NOISY * 10.0).astype(np.float32))),
    "a moment": ("timestamp", pa.array(NOISY.astype(np.int64) * 1_000_000)),
    "a category": ("categorical", pa.array(np.where(NOISY, random.integers(1, 9, NUM), random.integers(9, 20, NUM)))),
    "a category without order": ("categorical", pa.array(2 * random.integers(1, 9, NUM) + NOISY)),
    "lists": ("categorical_list", lists([[1, 7] if one else [2] for one in NOISY])),
    "lists that are empty": ("categorical_list", lists([[1] if one else [] for one in NOISY])),
    "a component": ("vector", vectors(np.stack([NOISE, NOISY.astype(float)], axis=1))),
}
HONEST = {
    "a number": ("numeric", pa.array(NOISE.astype(np.float32))),
    "a number that helps": ("numeric", pa.array((POSITIVE + NOISE).astype(np.float32))),
    "nothing but missing": ("numeric", pa.array(np.full(NUM, np.nan, np.float32))),
    "a category": ("categorical", pa.array(random.integers(0, 40, NUM))),
    "a value for each impression": ("categorical", pa.array(np.arange(NUM))),
    "hashes": ("categorical", pa.array(random.integers(-(2**62), 2**62, NUM))),
    "lists": ("categorical_list", lists([random.integers(1, 30, n % 4).tolist() for n in range(NUM)])),
    "only empty lists": ("categorical_list", lists([[] for _ in range(NUM)])),
    "vectors": ("vector", vectors(random.normal(size=(NUM, 5)))),
}


@pytest.mark.parametrize("name", LEAKS)
def test_leaky_features_are_flagged(name: str) -> None:
    actual = separation(*LEAKS[name], POSITIVE)
    assert actual is not None
    assert LEAKY_AUC <= actual <= 1.0


@pytest.mark.parametrize("name", HONEST)
def test_other_features_are_not_flagged(name: str) -> None:
    actual = separation(*HONEST[name], POSITIVE)
    assert actual is not None
    assert actual < (0.8 if "helps" in name else 0.56)


def test_a_label_with_one_outcome_has_no_auc() -> None:
    for kind, values in LEAKS.values():
        assert separation(kind, values, np.zeros(NUM, np.bool_)) is None
        assert separation(kind, values, np.ones(NUM, np.bool_)) is None
    assert separation("numeric", pa.array([], pa.float32()), np.zeros(0, np.bool_)) is None


def test_one_positive_among_few_is_no_error() -> None:
    positive = np.array([True, False, False])
    for kind, values in (("numeric", pa.array([1.0, 2.0, 3.0])), ("categorical", pa.array([1, 2, 3]))):
        actual = separation(kind, values, positive)
        assert actual is None or 0.0 <= actual <= 1.0


# On datasets


def write_impressions(path: Path, numbers: range) -> None:
    """Write impressions n at time n: the label is true for even n, `leak` repeats it, and `serial` is n itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n = np.asarray(numbers)
    draw = np.random.default_rng(1)
    columns: dict[str, Any] = {
        "user_id": n % 7,
        "item_id": n % 11,
        "time": n,
        "click": (n % 2 == 0).astype(np.int64),
        "serial": n.astype(np.float64),
        "leak": np.where(n % 2 == 0, "yes", "no"),
        "honest": draw.integers(0, 5, n.size),
    }
    pq.write_table(pa.table(columns), path)


FEATURES = {"serial": {"kind": "numeric"}, "leak": {"kind": "categorical"}, "honest": {"kind": "categorical"}}


def config_at(folder: Path, validation_time: int, test_time: int, features: dict[str, Any] = FEATURES) -> Config:
    return check_config(
        {
            "run": {"dataset": str(folder / "dataset")},
            "logs": {
                "path": str(folder / "logs"),
                "labels": ["click"],
                "history_label": "click",
                "features": features,
            },
            "split": {"kind": "global_time", "validation_time": validation_time, "test_time": test_time},
        },
        "test",
    )


def sampled(config: Config, manifest: Manifest, most: int) -> list[int]:
    sample = training_sample(config.dataset_dir, manifest, list(manifest.features), ["click"], most)
    serials = [int(serial) for serial in sample.column("impression.serial").to_pylist()]
    assert sample.column("label.click").to_pylist() == [float(serial % 2 == 0) for serial in serials]
    return sorted(serials)


def test_the_sample_is_of_training_impressions_of_all_generations(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.data.prepare.EVENTS_PER_PARTITION", 100)
    write_impressions(tmp_path / "logs/a.parquet", range(400))
    config = config_at(tmp_path, 300, 350)
    manifest = prepare(config, lambda _: None)
    assert manifest.num_partitions == 4
    assert sampled(config, manifest, 1_000) == list(range(300))

    write_impressions(tmp_path / "logs/b.parquet", range(400, 600))
    config = config_at(tmp_path, 500, 550)
    manifest = prepare(config, lambda _: None)
    assert manifest.generation == 1
    assert sampled(config, manifest, 1_000) == list(range(500))
    some = sampled(config, manifest, 60)
    assert len(set(some)) == 60
    assert max(some) < 500
    monkeypatch.setattr(leakage, "MAX_OF_GROUP", 5)
    spread = sampled(config, manifest, 30)
    assert len({serial % 7 for serial in spread}) > 1


def test_a_leak_in_a_dataset_is_flagged_and_listed_first(tmp_path: Path, ray_session: None) -> None:
    write_impressions(tmp_path / "logs/a.parquet", range(2_000))
    config = config_at(tmp_path, 1_500, 1_800)
    manifest = prepare(config, lambda _: None)
    actual = leaky_features(config.dataset_dir, manifest)
    assert (actual[0].feature, actual[0].auc) == ("leak", 1.0)
    assert {given.feature for given in actual if given.auc < 0.6} == {"serial", "honest"}
    assert actual == leaky_features(config.dataset_dir, manifest)


def test_features_of_every_kind_are_read_from_a_dataset(tmp_path: Path, ray_session: None) -> None:
    write_impressions(tmp_path / "logs/a.parquet", range(900))
    table = pq.read_table(tmp_path / "logs/a.parquet")
    click = table.column("click").to_pylist()
    table = table.append_column("tags", pa.array([["a", "b"] if one else ["c", None] for one in click]))
    table = table.append_column("shown", pa.array([one * 1_000_000 for one in click], pa.timestamp("us")))
    table = table.append_column("embedding", pa.array([[0.5, float(one)] for one in click]))
    table = table.append_column("price", pa.array([one + 0.5 for one in click]))
    pq.write_table(table, tmp_path / "logs/a.parquet")
    features = {
        "tags": {"kind": "categorical"},
        "shown": {"kind": "timestamp"},
        "embedding": {"kind": "vector", "dim": 2},
        "price": {"kind": "numeric", "buckets": 2},
    }
    config = config_at(tmp_path, 700, 800, features)
    actual = leaky_features(config.dataset_dir, prepare(config, lambda _: None))
    assert {given.feature: given.auc for given in actual} == dict.fromkeys(features, 1.0)
