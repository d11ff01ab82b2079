"""restarts.jsonl: a line per restart, completed when the workers train again."""

import json
from pathlib import Path

from trainer.restart_log import EVALUATION, FILE, note_recovery, note_restart, read_restarts, restarts_text


def test_a_restart_is_completed_by_the_recovery_that_follows_and_no_other(tmp_path: Path) -> None:
    note_recovery(tmp_path, 1.0, {}, 1, 1)  # without a restart there is nothing to complete
    note_restart(tmp_path, "failure", "rank 0 died", "trace")
    note_restart(tmp_path, "preemption", "node-1 was taken back", "")
    note_recovery(tmp_path, 12.345, {"imports": 2.0}, 3, 24)
    note_recovery(tmp_path, 99.0, {}, 9, 9)
    first, second = read_restarts(tmp_path)
    assert (first.text, first.trace, first.seconds) == ("rank 0 died", "trace", None)
    assert (second.seconds, second.parts, second.steps, second.rows) == (12.35, {"imports": 2.0}, 3, 24)
    text = "after 1 failure, 1 preemption, 12.3 s on average until training again; 24 rows trained again"
    assert restarts_text([first, second]) in (text, text.replace("12.3", "12.4"))


def test_a_restart_of_an_evaluation_is_not_completed_by_a_recovery_of_training(tmp_path: Path) -> None:
    note_restart(tmp_path, "failure", "rank 0 died", "")
    note_restart(tmp_path, EVALUATION, "the evaluation of step_000000007: rank 1 died", "trace")
    note_recovery(tmp_path, 5.0, {}, 1, 8)
    training, evaluation = read_restarts(tmp_path)
    assert (training.seconds, training.rows) == (5.0, 8)
    assert (evaluation.seconds, evaluation.trace) == (None, "trace")
    assert restarts_text([training, evaluation]).startswith("after 1 failure, 1 failed evaluation, 5.0")


def test_a_line_of_an_earlier_version_and_half_a_line_are_no_reason_to_fail(tmp_path: Path) -> None:
    lines = [json.dumps({"time": 1.0, "cause": "failure", "text": "rank 1 died", "trace": ""}), '{"time": 2.0, "ca']
    (tmp_path / FILE).write_text("\n".join(lines))
    assert [restart.text for restart in read_restarts(tmp_path)] == ["rank 1 died"]
    assert read_restarts(tmp_path / "none") == []
