"""Runs with features of events, users and times: the same on any number of workers, resumed or not, and better for them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.config.run_config import check_config, job_of
from cluster.data.prepare import prepare
from tests.contracts.test_dynamic_tables import lines, train
from tests.contracts.test_item_features import train_and_test
from tests.contracts.test_world_size import train as train_plainly
from tests.support.rank_pool import RankPool
from trainer.config.job import Job

NUM_ITEMS, NUM_USERS = 30, 34
HASHED = {"kind": "hash", "num_rows": 23}
DYNAMIC = {"kind": "dynamic", "num_rows": 12, "admit_after": 3, "max_age_steps": 2, "max_candidates": 16}
OBJECTIVES = {"full": {"kind": "full_softmax"}, "sampled": {"kind": "sampled_softmax", "num_negatives": 8}}


def write_logs(folder: Path) -> None:
    """Write logs: brands of items, words of events and likes of users are values of one kind; some are missing, as are devices."""
    random = np.random.default_rng(5)
    lengths = random.integers(3, 11, size=NUM_USERS)
    users, count = np.repeat(np.arange(NUM_USERS), lengths), int(lengths.sum())
    words = [None if n % 9 == 0 else random.integers(0, 40, size=n % 4).tolist() for n in range(count)]
    events = {
        "user_id": users,
        "item_id": random.integers(0, NUM_ITEMS, size=count),
        "time": 1_700_000_000 + random.integers(0, 10**6, size=count),
        "word": pa.array(words, pa.list_(pa.int64())),
        "device": pa.array([None if n % 7 == 0 else f"device-{n % 5}" for n in range(count)]),
        "price": random.random(count),
    }
    folder.mkdir(parents=True)
    pq.write_table(pa.table(events), folder / "events.parquet")
    items = {"item_id": np.arange(NUM_ITEMS), "brand": random.integers(0, 40, size=NUM_ITEMS)}
    pq.write_table(pa.table(items), folder / "items.parquet")
    like = [None if user % 5 == 0 else int(random.integers(0, 40)) for user in range(NUM_USERS)]
    people = {"user_id": np.arange(NUM_USERS), "like": pa.array(like, pa.int64()), "age": random.random(NUM_USERS)}
    pq.write_table(pa.table(people), folder / "users.parquet")


def job_at(folder: Path, run: str, ids: dict[str, Any], **sections: Any) -> Job:
    table = {"optimizer": "adagrad", "learning_rate": 0.01, "init_std": 0.1}
    label = {"kind": "categorical", "table": "label"}
    values = {
        "run": {"dir": str(folder / run), "dataset": str(folder / f"dataset-{ids['kind']}"), "seed": 5},
        "logs": {
            "path": str(folder / "logs/events.parquet"),
            "features": {
                "word": label,
                "device": {"kind": "categorical"},
                "price": {"kind": "numeric"},
            },
            "items": {"path": str(folder / "logs/items.parquet"), "features": {"brand": label}},
            "users": {"path": str(folder / "logs/users.parquet"), "features": {"like": label, "age": {"kind": "numeric"}}},
        },
        "model": {
            "max_history": 6,
            "objective": OBJECTIVES[sections.get("objective", "sampled")],
            "encoder": {"num_blocks": 1, "dropout": sections.get("dropout", 0.0), "attention": {"bias": "time"}},
            "inputs": {"time": ["gap", "hour", "weekday"], "request_time": True},
        },
        "tables": {
            "item": {"dim": 16, "sharding": "row_wise", **table},
            "label": {
                "dim": 8, "sharding": sections.get("sharding", "row_wise"), "ids": ids, **table,
                "lookup": sections.get("lookup", "rows"),
            },
            "device": {"sharding": "table_wise", **table, "lookup": sections.get("lookup", "rows")},
        },
        "train": {
            "epochs": 3, "evaluate_every_epochs": 3,
            "batch_size": 5, "optimizer": "adagrad", "learning_rate": 0.01, "log_every_steps": 1,
            "early_stopping": None, **sections.get("train", {}),
        },
        "plan": {"measure": False},
        "evaluate": {"ks": [5, 10]},
    }  # fmt: skip
    return job_of(check_config(values, "test"))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    path = tmp_path_factory.mktemp("told")
    write_logs(path / "logs")
    for ids in (HASHED, DYNAMIC):
        prepare(check_config(job_at(path, "none", ids).config, "test"), lambda _: None)
    return path


@pytest.fixture
def folder(datasets: Path, tmp_path: Path) -> Path:
    """Return the datasets, in a folder for runs of this test alone."""
    for name in ("logs", "dataset-hash", "dataset-dynamic"):
        (tmp_path / name).symlink_to(datasets / name)
    return tmp_path


@pytest.mark.parametrize(
    ("sharding", "objective"),
    [("row_wise", "sampled"), ("table_wise", "full"), ("column_wise", "full"), ("data_parallel", "sampled")],
)
def test_a_table_shared_by_items_events_and_users_trains_the_same_under_any_sharding(
    folder: Path, rank_pool: RankPool, sharding: str, objective: str
) -> None:
    actual = {}
    for size in (1, 3):
        # Adagrad would turn a rounded gradient of nearly zero into a step of its own.
        steps = {"max_steps": 10, "optimizer": "sgd", "learning_rate": 0.05}
        job = job_at(folder, f"{sharding}-{size}", HASHED, sharding=sharding, objective=objective, train=steps)
        actual[size] = rank_pool.run(size, train_plainly, job)[0], lines(folder, f"{sharding}-{size}")
    assert [line["loss"] for line in actual[3][1]] == pytest.approx([line["loss"] for line in actual[1][1]], rel=1e-5)
    names = list(actual[1][0])
    assert {"inputs.time.vectors.gap.weight", "inputs.events.price.weight", "inputs.users.like.weight"} <= {
        name.removeprefix("_dmp_wrapped_module.") for name in names
    }
    torch.testing.assert_close(actual[3][0], actual[1][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", ["sampled", "full"])
def test_features_that_are_looked_up_as_bags_train_the_same_model(
    folder: Path, rank_pool: RankPool, objective: str
) -> None:
    """Clipped by the norm of the whole gradient, which has to find that of every row."""
    steps = {"max_steps": 10, "optimizer": "sgd", "learning_rate": 0.05, "clip_norm": 0.1, "micro_batch_tokens": 8}

    def losses_of(size: int, lookup: str) -> tuple[list[float], list[float]]:
        run = f"{lookup}-{size}"
        rank_pool.run(size, train_plainly, job_at(folder, run, HASHED, objective=objective, lookup=lookup, train=steps))
        actual = lines(folder, run)
        return [line["loss"] for line in actual], [line["grad_norm"] for line in actual]

    expected = losses_of(1, "rows")
    for size in (1, 2):
        for actual, wanted in zip(losses_of(size, "bags"), expected, strict=True):
            assert actual == pytest.approx(wanted, rel=1e-5)
            assert len(actual) == 10


@pytest.mark.parametrize("lookup", ["rows", "bags"])
@pytest.mark.parametrize("objective", ["sampled", "full"])
def test_dynamic_ids_of_events_and_users_get_the_same_rows_on_any_number_of_workers(
    folder: Path, rank_pool: RankPool, objective: str, lookup: str
) -> None:
    sizes = {1: "rows", 2: lookup, 3: lookup}
    actual = {
        size: rank_pool.run(size, train, job_at(folder, f"run-{size}", DYNAMIC, objective=objective, lookup=way))[0]
        for size, way in sizes.items()
    }
    assert sum(line["ids.label.evicted"] for line in lines(folder, "run-1")) > 0
    for size in (2, 3):
        assert actual[size].mapping == actual[1].mapping
        torch.testing.assert_close(actual[size].tensors, actual[1].tensors, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stopped_and_resumed_run_is_bit_identical(folder: Path, rank_pool: RankPool, world_size: int) -> None:
    settings = {"dropout": 0.25, "train": {"max_steps": 15}}
    uninterrupted = rank_pool.run(world_size, train, job_at(folder, "whole", DYNAMIC, **settings))
    pieces = job_at(folder, "pieces", DYNAMIC, **settings)
    for steps in (4, 5):
        rank_pool.run(world_size, train, pieces, steps)
    resumed = rank_pool.run(world_size, train, pieces)
    assert [part.local for part in resumed] == [part.local for part in uninterrupted]
    losses = [[line["loss"] for line in lines(folder, run)] for run in ("whole", "pieces")]
    assert losses[0] == losses[1]


def write_telling_logs(folder: Path) -> None:
    """Write logs of items from a part of the catalogue that depends on the previous event, the hour and the user."""
    random = np.random.default_rng(2)
    rows = []
    for user in range(150):
        half, time = [0, 0, 0], 1_700_000_000
        for _ in range(9):
            item = half[0] * 8 + half[1] * 4 + half[2] * 2 + int(random.integers(2))
            half = [int(random.integers(2)), int(random.integers(2)), user % 2]
            time += (
                86_400 - time % 86_400 + 3_600 * (6 + 12 * half[1])
            )  # the next day, in the morning or in the evening
            rows.append((user, item, time, f"place-{half[0]}"))
    users, items, times, places = (list(column) for column in zip(*rows, strict=True))
    folder.mkdir(parents=True)
    log = {"user_id": users, "item_id": items, "time": times, "place": places}
    pq.write_table(pa.table(log), folder / "events.parquet")
    people = {"user_id": list(range(150)), "group": [f"group-{user % 2}" for user in range(150)]}
    pq.write_table(pa.table(people), folder / "users.parquet")


def test_features_of_events_users_and_times_are_learned(tmp_path: Path, rank_pool: RankPool, ray_session: None) -> None:
    """Each of the three halves the items that are left: 16 without any, 2 with all of them."""
    write_telling_logs(tmp_path / "logs")

    def job_of_inputs(run: str, inputs: dict[str, Any]) -> Job:
        adagrad = {"optimizer": "adagrad", "learning_rate": 0.05}
        group = {"kind": "categorical"}
        values = {
            "run": {"dir": str(tmp_path / run), "dataset": str(tmp_path / "dataset")},
            "logs": {
                "path": str(tmp_path / "logs/events.parquet"),
                "features": {"place": {"kind": "categorical"}},
                "users": {"path": str(tmp_path / "logs/users.parquet"), "features": {"group": group}},
            },
            "model": {"max_history": 8, "encoder": {"num_blocks": 1, "dropout": 0.0}, "inputs": inputs},
            "tables": {"item": {"dim": 16, **adagrad}, "place": adagrad, "group": adagrad},
            "train": {
                "epochs": 12, "evaluate_every_epochs": 4, "batch_size": 32, "optimizer": "adagrad", "learning_rate": 0.02,
                "early_stopping": None,
            },
            "evaluate": {"ks": [2], "mask_seen": False},
            "plan": {"measure": False},
        }  # fmt: skip
        return job_of(check_config(values, "test"))

    prepare(check_config(job_of_inputs("none", {}).config, "test"), lambda _: None)
    nothing = {"event_features": [], "user_features": []}
    hits = [
        rank_pool.run(1, train_and_test, job_of_inputs(f"run-{number}", inputs))[0][1]["hr@2"]
        for number, inputs in enumerate(
            ({"time": ["hour"]}, {}, {"event_features": [], "time": ["hour"]}, {"user_features": []}, nothing)
        )
    ]
    assert hits[0] > 0.95
    assert all(hit < hits[0] - 0.25 for hit in hits[1:])
