"""Metrics log and sample log: after resuming they hold exactly the steps that the weights have seen, each once."""

import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.errors import UserError
from trainer.metrics_log import (
    ATTEMPTS,
    MetricsLog,
    SampleLog,
    TrainingTime,
    read_metrics,
    read_training_time,
    truncate_after,
)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scalars(run_dir: Path, name: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    return [(event.step, pytest.approx(event.value)) for event in board.Scalars(name)]


def test_lines_are_written_at_once_and_read_back(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    log.write(1, "train", {"loss": 2.5, "epoch": 0})
    log.write(2, "skipped", {"reason": "not finite", "row_ids": [[3], [4]]})
    rows = read_metrics(tmp_path / "metrics.jsonl")  # before the log is closed: a killed process loses no line
    log.close()
    assert rows == [
        {"step": 1, "kind": "train", "loss": 2.5, "epoch": 0},
        {"step": 2, "kind": "skipped", "reason": "not finite", "row_ids": [[3], [4]]},
    ]


def test_a_loss_that_is_not_a_number_can_be_logged(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    log.write(1, "train", {"loss": float("nan")})
    log.close()
    assert math.isnan(read_metrics(tmp_path / "metrics.jsonl")[0]["loss"])


def test_resuming_removes_steps_after_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    for step in range(1, 7):
        log.write(step, "train", {"loss": float(step)})
    log.close()
    log = MetricsLog(tmp_path, resume_step=4)
    for step in (5, 6, 7):
        log.write(step, "train", {"loss": 10.0 * step})
    log.close()
    expected = [1.0, 2.0, 3.0, 4.0, 50.0, 60.0, 70.0]
    assert [(row["step"], row["loss"]) for row in lines_of(tmp_path / "metrics.jsonl")] == list(enumerate(expected, 1))
    assert scalars(tmp_path, "train/loss") == list(enumerate(expected, 1))


def test_a_half_written_last_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kind": "train"}\n{"step": 2, "ki')
    truncate_after(path, 5)
    assert path.read_text() == '{"step": 1, "kind": "train"}\n'


def test_a_fresh_start_empties_the_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    truncate_after(path, 0)
    assert path.read_text() == ""
    truncate_after(tmp_path / "missing.jsonl", 3)
    assert not (tmp_path / "missing.jsonl").exists()


def test_lines_of_every_kind_of_the_resumed_step_are_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 4, "kind": "train"}\n{"step": 4, "kind": "validation"}\n{"step": 5, "kind": "train"}\n')
    truncate_after(path, 4)
    assert [row["kind"] for row in read_metrics(path)] == ["train", "validation"]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not JSON"):
        read_metrics(path)
    assert read_metrics(tmp_path / "missing.jsonl") == []


def test_the_sample_log_has_every_step_once_after_resuming(tmp_path):
    first = SampleLog(tmp_path, rank=1, resume_step=0)
    for step in range(1, 6):
        first.write(step, [step, step + 100])
    first.close()
    resumed = SampleLog(tmp_path, rank=1, resume_step=3)
    resumed.write(4, [7])
    assert lines_of(tmp_path / "sample_log" / "rank-1.jsonl") == [
        {"step": 1, "row_ids": [1, 101]},
        {"step": 2, "row_ids": [2, 102]},
        {"step": 3, "row_ids": [3, 103]},
        {"step": 4, "row_ids": [7]},
    ]
    resumed.close()


def test_every_rank_has_its_own_sample_log(tmp_path):
    logs = [SampleLog(tmp_path, rank, resume_step=0, world_size=2) for rank in range(2)]
    for rank, log in enumerate(logs):
        log.write(1, [rank])
        log.close()
    assert [lines_of(tmp_path / "sample_log" / f"rank-{rank}.jsonl")[0]["row_ids"] for rank in range(2)] == [[0], [1]]


def test_a_smaller_group_removes_the_lost_steps_of_ranks_that_it_does_not_have(tmp_path):
    logs = [SampleLog(tmp_path, rank, resume_step=0, world_size=3) for rank in range(3)]
    for rank, log in enumerate(logs):
        for step in (1, 2, 3):
            log.write(step, [rank])
        log.close()
    for rank in range(2):
        SampleLog(tmp_path, rank, resume_step=1, world_size=2).close()
    steps = [[line["step"] for line in lines_of(tmp_path / "sample_log" / f"rank-{rank}.jsonl")] for rank in range(3)]
    assert steps == [[1], [1], [1]]


def test_the_time_of_training_is_summed_over_attempts(tmp_path, monkeypatch):
    clock = iter([100.0, 100.0, 130.0, 500.0, 500.0, 520.0])
    monkeypatch.setattr("trainer.metrics_log._now", lambda: next(clock))
    for resume_step in (0, 1):
        log = MetricsLog(tmp_path, resume_step)
        log.write(resume_step + 1, "train", {"loss": 1.0})
        log.close()
    assert read_training_time(tmp_path) == TrainingTime(seconds=50.0, ended=520.0)


def test_without_a_record_the_time_of_training_is_unknown(tmp_path):
    assert read_training_time(tmp_path) is None
    (tmp_path / ATTEMPTS).write_text("[[1, ")
    assert read_training_time(tmp_path) is None


def test_a_run_of_an_earlier_version_keeps_its_folder(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    log = SampleLog(tmp_path, 0, resume_step=0)
    log.write(1, [7])
    log.close()
    assert lines_of(tmp_path / "ledger" / "rank-0.jsonl") == [{"step": 1, "row_ids": [7]}]
    assert not (tmp_path / "sample_log").exists()
