"""`shoal status`: the state of a run as people read it, while it trains and after it ended."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from cluster.driver.run_lock import locked
from cluster.driver.stage_record import StageRecord
from cluster.driver.status import read_status, status_table
from trainer.errors import UserError
from trainer.restart_log import note_recovery, note_restart

LINES = (
    {"step": 10, "kind": "train", "loss": 5.25, "events_per_second": 100.0},
    {"step": 20, "kind": "validation", "hr@1": 0.125, "hr@10": 0.5, "ndcg@10": 0.25, "map@10": 0.2, "seconds": 2.0},
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (tmp_path / "checkpoints/step_000000020").mkdir(parents=True)
    (tmp_path / "checkpoints/step_000000020/manifest.json").write_text("{}")
    (tmp_path / "checkpoints/best.json").write_text(json.dumps({"step": 20, "metric": "hr@10", "value": 0.5}))
    (tmp_path / "evaluation/test").mkdir(parents=True)
    (tmp_path / "evaluation/test/report.html").write_text("")
    return tmp_path


def text_of(folder: Path) -> str:
    screen = io.StringIO()
    Console(file=screen, width=80).print(status_table(read_status(folder), time.time()))
    return screen.getvalue()


def test_a_running_training_shows_its_step_its_speed_and_when_it_was_last_seen(run: Path) -> None:
    record = StageRecord(run)
    with locked(run):
        record.finish("prepare", "inputs", {})
        record.begin("train", "inputs")
        progress = {"step": 30, "total_steps": 90, "loss": 4.5, "events_per_second": 1234.5, "seconds_left": 61.0}
        record.note_progress("train", progress)
        status = read_status(run)
        text = text_of(run)
    assert status.stages == {"prepare": "done", "train": "running"}
    assert status.progress == progress
    assert status.last_seen == pytest.approx(time.time(), abs=60)
    assert "30 of 90, loss 4.5000, 1,234 events/s, 1 min 01 s left" in " ".join(text.replace("│", " ").split())
    assert read_status(run).stages["train"] == "interrupted"  # its process has let go of the run


def test_an_ended_run_shows_its_newest_step_the_best_checkpoint_and_its_report(run: Path) -> None:
    record = StageRecord(run)
    record.begin("train", "inputs")
    record.finish("train", "inputs", {"step": 20})
    record.finish("evaluate/test/report", "inputs", {})
    status = read_status(run)
    assert set(status.stages) == {"train"}
    assert status.seconds["train"] >= 0
    text = text_of(run)
    for part in (
        "10, loss 5.2500",
        "at step 20: hr@10 0.5000, ndcg@10 0.2500 ",
        "step 20, hr@10 0.5000",
        "step_000000020",
    ):
        assert part in text, part
    assert "report.html" in "".join(text.replace("│", "").split())


def test_restarts_are_shown_with_what_they_took(run: Path) -> None:
    note_restart(run, "failure", "rank 1 on node-7 died in step 42", "trace")
    note_recovery(run, 12.0, {}, 3, 24)
    assert read_status(run).restarts[0]["rows"] == 24
    text = " ".join(text_of(run).replace("│", " ").split())
    assert "1, after 1 failure, 12.0 s on average until training again; 24 rows trained again" in text
    assert "rank 1 on node-7 died in step 42" in text
    assert "trace" not in read_status(run).restarts[0]


def test_a_run_that_has_not_started_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "none has started" in text_of(tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json, so this is no run folder"):
        read_status(tmp_path)


def test_progress_is_noted_every_few_seconds_and_only_of_a_running_stage(tmp_path: Path) -> None:
    record = StageRecord(tmp_path)
    record.note_progress("train", {"step": 1})
    assert record.read() == {"stages": {}}
    record = StageRecord(tmp_path)
    record.begin("train", "inputs")
    record.note_progress("train", {"step": 1})
    record.note_progress("train", {"step": 2})
    assert record.read()["stages"]["train"]["progress"]["step"] == 1
