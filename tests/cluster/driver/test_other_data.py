"""Evaluation on later logs and on another dataset: what is evaluated, where it is written, and what is refused."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import shoal
from cluster.config.run_config import Config, check_config
from cluster.data.prepare_with import prepare_with
from cluster.driver import driver
from cluster.driver.other_data import LaterLogs, OtherData, OtherDataset, given_histories, later_logs
from cluster.driver.progress import View
from cluster.driver.run_folder import open_run
from cluster.driver.stage_record import StageRecord
from sharding.world import World
from tests.cluster.driver.test_stages import InProcess
from tests.support.prepared import made, write_events
from tests.support.rank_pool import RankPool
from trainer.data.prepare.derived import Derivation
from trainer.errors import UserError
from trainer.recommend.request import Options

SPLIT = {"kind": "global_time", "validation_time": 60, "test_time": 100}


def walks(users: range, times: range, first_item: int) -> list[tuple[str, str, int]]:
    """Return events (user, item, time) of walks over a ring of 12 items; later ones also meet items 12 to 14."""
    ring = 12 if times[0] == 0 else 15
    return [
        (f"u{u:02d}", f"i{(u + t // 7 + first_item) % ring:02d}", t + u % 5) for u in users for t in times[:: 7 + u % 4]
    ]


def config_in(folder: Path, **sections: dict[str, Any]) -> Config:
    values: dict[str, Any] = {
        "run": {"dir": str(folder / "run"), "seed": 3},
        "logs": {"path": str(folder / "logs"), "max_rejected_fraction": 0.2},
        "split": SPLIT,
        "model": {"max_history": 8, "encoder": {"num_blocks": 1, "dropout": 0.0}},
        "tables": {"item": {"dim": 8, "sharding": "row_wise"}},
        "train": {"epochs": 2, "batch_size": 8, "early_stopping": None},
        "evaluate": {"ks": [2, 5], "batch_size": 7},
        "plan": {"measure": False},
        "cluster": {"num_workers": 1, "prepare_tasks": 2},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return check_config(values, "test")


def run_in_rank(world: World, config: Config, name: str, *arguments: Any) -> tuple[Any, str]:
    """Run driver.NAME with the view in its place; return its result, or its error as text, and what was printed."""

    @contextmanager
    def opened(config: Config, view: View) -> Iterator[tuple[Any, InProcess]]:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        yield mock.Mock(connect=lambda: None), InProcess(world)

    console = Console(record=True, width=400, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    with View(console) as view, mock.patch.object(driver, "_opened", opened):
        try:
            result = getattr(driver, name)(config, *(view if a == "VIEW" else a for a in arguments))
        except UserError as error:
            result = str(error)
    return result, console.export_text()


@pytest.fixture(scope="module")
def folder(ray_session: None, rank_pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a trained run, later logs, and these prepared with the run's vocabularies."""
    folder = tmp_path_factory.mktemp("other-data")
    write_events(folder / "logs/old.parquet", walks(range(20), range(95), 0))
    write_events(folder / "later/new.parquet", walks(range(5, 25), range(100, 150), 3))
    config = config_in(folder)
    made(config)
    rank_pool.run(1, run_in_rank, config, "run_train", "VIEW")
    prepared(folder, config, logs_of(folder))
    return folder


def logs_of(folder: Path, **overrides: Any) -> LaterLogs:
    return later_logs(config_in(folder), [str(folder / "later")], overrides)


def prepared(folder: Path, config: Config, logs: LaterLogs) -> Path:
    """Prepare later logs where evaluate looks for them; the ranks of the tests have no Ray."""
    path = folder / "run/datasets" / logs.name
    prepare_with(config.dataset_dir, logs.config, path, Derivation(), lambda _: None)
    return path


def evaluated(
    rank_pool: RankPool, config: Config, data: OtherData | None, split: str = "test", name: str | None = None
) -> Any:
    """Return the results and the folder of an evaluation, or the message of its refusal."""
    result, said = rank_pool.run(1, run_in_rank, config, "run_evaluate", split, name, "VIEW", data)[0]
    return result if isinstance(result, str) else (result[0], result[1].parent, said)


def test_later_logs_are_evaluated_into_a_folder_of_their_own(rank_pool: RankPool, folder: Path) -> None:
    logs = logs_of(folder)
    results, where, _ = evaluated(rank_pool, config_in(folder), logs)
    assert where == folder / "run/evaluation" / logs.name / "test"
    assert logs.name.startswith("logs-later-")
    new: dict[str, list[str]] = {}
    for user, item, _ in sorted(walks(range(5, 25), range(100, 150), 3), key=lambda event: event[2]):
        new.setdefault(user, []).append(item)
    known = {user for user, _, _ in walks(range(20), range(95), 0)}
    rows = pq.read_table(where / "per_user.parquet").to_pylist()
    assert {row["user"] for row in rows} == set(new) & known
    for row in rows:
        assert row["targets"] == [item if item < "i12" else None for item in new[row["user"]]]
    protocol = results.protocol
    events = [item for items in new.values() for item in items]
    assert protocol["num_events"] == len(events)
    assert protocol["num_unknown_items"] == len({item for item in events if item >= "i12"})
    assert protocol["num_unknown_item_events"] == sum(item >= "i12" for item in events)
    assert protocol["num_new_users"] == len(set(new) - known)
    assert protocol["period"].startswith("100 to ")
    assert "every new event is a target" in protocol["statement"]
    assert "later logs" in (where / "report.html").read_text()
    again = evaluated(rank_pool, config_in(folder), logs)
    assert "test done before" in again[2]
    stages = StageRecord(folder / "run").statuses()
    assert stages[f"evaluate/{logs.name}/test"] == stages[f"prepare/{logs.name}"] == "done"


def test_recommendations_for_given_histories(rank_pool: RankPool, folder: Path, tmp_path: Path) -> None:
    config = config_in(folder)
    given = given_histories(config, [str(folder / "later")])
    assert given is not None
    assert given_histories(config, None) is None
    assert given.name.startswith("history-later-")
    prepare_with(
        config.dataset_dir, given.config, folder / "run/datasets" / given.name, given.derivation, lambda _: None
    )

    def asked(options: Options, out: Path = tmp_path / "out") -> tuple[Any, str]:
        (answer,) = rank_pool.run(1, run_in_rank, config, "run_recommend", options, None, out, "VIEW", given)
        return answer

    (manifest, where), said = asked(Options(k=3))
    assert "items that the model does not know; 20 users; 0 rows rejected" in said
    assert (manifest.num_users, manifest.num_popular) == (20, 0)
    open_run(config)
    model = shoal.load(config.run_dir)
    assert isinstance(model, shoal.NextItemRecommender)
    later = pq.read_table(folder / "later/new.parquet")
    expected = model.recommend(later, 3).to_pandas().sort_values(["user_id", "rank"], ignore_index=True)
    actual = pd.read_parquet(where).sort_values(["user_id", "rank"], ignore_index=True)
    pd.testing.assert_frame_equal(actual, expected, rtol=1e-5, atol=1e-6)
    own = model.recommend(users=["u07"], k=3).column("score").to_pylist()
    assert actual[actual["user_id"] == "u07"]["score"].tolist() != own  # earlier events do not count
    assert "done before" in asked(Options(k=3))[1]
    message, _ = asked(Options(item_to_item=True))
    assert message == "--history: similar items depend on no history; leave it out"


def test_the_figures_are_those_of_logs_that_were_appended(
    ray_session: None, rank_pool: RankPool, folder: Path, tmp_path: Path
) -> None:
    """Appending the same files, with items that the training period does not know either, gives the same test split."""
    shutil.copytree(folder / "run", tmp_path / "run", symlinks=True)
    shutil.copytree(folder / "logs", tmp_path / "logs", copy_function=shutil.copy2)
    shutil.copy2(folder / "later/new.parquet", tmp_path / "logs/new.parquet")
    config = config_in(tmp_path, run={"new_logs": "evaluate"})
    made(config)
    of_logs = evaluated(rank_pool, config_in(folder), logs_of(folder))[0]
    appended = evaluated(rank_pool, config, None)[0]
    assert of_logs.metrics == appended.metrics
    assert of_logs.num_targets == appended.num_targets
    assert of_logs.baselines == appended.baselines


def test_another_dataset_of_the_same_vocabularies_is_evaluated(rank_pool: RankPool, folder: Path) -> None:
    config, logs = config_in(folder), logs_of(folder)
    data = OtherDataset(folder / "run/datasets" / logs.name)
    by_folder, where, _ = evaluated(rank_pool, config, data, name="step_000000006")
    assert where.parent.parent.name == "step_000000006"
    assert by_folder.metrics == evaluated(rank_pool, config, logs)[0].metrics
    assert "all of their events are test targets" in evaluated(rank_pool, config, data, "validation")


def test_a_dataset_split_otherwise_is_evaluated_and_one_of_other_values_refused(
    ray_session: None, rank_pool: RankPool, folder: Path
) -> None:
    config = config_in(folder)
    split = {**SPLIT, "test_time": 80}
    same = config_in(folder, run={"dataset": str(folder / "same")}, split=split)
    made(same)
    results = evaluated(rank_pool, config, OtherDataset(folder / "same"))[0]
    assert results.protocol["split"]["test_time"] == 80
    write_events(folder / "elsewhere/a.parquet", [*walks(range(20), range(95), 0), ("u01", "i00x", 1)])
    different = config_in(folder, run={"dataset": str(folder / "different")}, logs={"path": str(folder / "elsewhere")})
    made(different)
    message = evaluated(rank_pool, config, OtherDataset(folder / "different"))
    assert "table item: had 12 values, has 13; id 2 was i01, is i00x" in message
    assert "--logs" in message


def test_a_checkpoint_of_another_model_is_refused_by_name(rank_pool: RankPool, folder: Path) -> None:
    config = config_in(folder)
    other = config_in(
        folder, run={"dir": str(folder / "other"), "dataset": str(folder / "run/dataset")}, tables={"item": {"dim": 4}}
    )
    path = str(folder / "run/checkpoints/step_000000006")
    message = evaluated(rank_pool, other, None, name=path)
    assert "tables.item.dim: was 8, is 4" in message
    trained_longer = config_in(
        folder,
        run={"dir": str(folder / "longer"), "dataset": str(folder / "run/dataset")},
        train={"learning_rate": 0.5},
    )
    data = OtherDataset(folder / "run/datasets" / logs_of(folder).name)
    own, there = (evaluated(rank_pool, c, data, name=path)[0] for c in (config, trained_longer))
    assert own.metrics == there.metrics


def test_settings_of_the_logs_are_their_own(folder: Path) -> None:
    logs = logs_of(folder, **{"logs.user": "uid", "logs.text": {"delimiter": ";"}})
    assert (logs.config.logs.user, logs.config.logs.item) == ("uid", "item_id")
    assert logs.config.logs.text.delimiter == ";"
    assert logs.name != logs_of(folder).name
    with pytest.raises(UserError, match=r"train\.epochs: is no setting of the new logs"):
        logs_of(folder, **{"train.epochs": 3})


def test_nothing_is_trained_on_later_logs(rank_pool: RankPool, folder: Path) -> None:
    data = folder / "run/datasets" / logs_of(folder).name
    config = config_in(folder, run={"dir": str(folder / "misled"), "dataset": str(data)})
    message, _ = rank_pool.run(1, run_in_rank, config, "run_train", "VIEW")[0]
    assert "was made from later logs" in message
    assert not json.loads((folder / "run/state.json").read_text())["stages"].get("train", {}).get("reason")
