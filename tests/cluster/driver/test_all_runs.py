"""The list of all runs: a line for each, also for one with a damaged record."""

import json
import time
from pathlib import Path

import pytest

from cluster.driver.all_runs import read_runs, runs_table
from cluster.driver.progress import plain_console
from trainer.errors import UserError
from trainer.restart_log import note_restart


def a_run(folder: Path, stages: dict[str, str], metrics: list[dict[str, object]], restarts: int = 0) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"cluster": {"num_workers": 3}}))
    entries = {name: {"status": status, "inputs": "x"} for name, status in stages.items()}
    (folder / "state.json").write_text(json.dumps({"stages": entries}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    for number in range(restarts):
        note_restart(folder, "failure", f"restart {number}", "")


def test_every_run_has_a_line(tmp_path: Path) -> None:
    train = {"step": 40, "kind": "train", "loss": 1.0, "events_per_second": 1234.4}
    validation = {"step": 30, "kind": "validation", "ndcg@10": 0.125, "seconds": 2.0}
    a_run(tmp_path / "b", {"prepare": "done", "train": "stopped"}, [train, validation], restarts=2)
    a_run(tmp_path / "study/trials/one", {}, [])
    a_run(tmp_path / "c", {}, [])
    (tmp_path / "c/state.json").write_text("{")
    (tmp_path / "b/dataset").mkdir()
    (tmp_path / "b/dataset/config.json").write_text("{}")  # what is inside a run is no run
    b, c, one = read_runs(tmp_path)
    assert (b.run, b.stage, b.step, b.events_per_second) == ("b", "train stopped", 40, 1234.4)
    assert (b.evaluation, b.workers, b.restarts) == (("ndcg@10", 0.125, 30), 3, 2)
    assert (one.run, one.stage, one.step, one.restarts) == ("study/trials/one", "not started", None, 0)
    assert c.stage.startswith("not readable: ")
    console = plain_console(record=True, width=200, file=(tmp_path / "screen").open("w"))
    console.print(runs_table([b, c, one], time.time()))
    assert "ndcg@10 0.1250 at 30" in console.export_text()


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs in it"):
        read_runs(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_runs(tmp_path / "x")
