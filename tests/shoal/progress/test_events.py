"""Events as a listener receives them: typed, in order, and each once."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.progress.events import event_of
from shoal.progress.view import ListeningView

ROOT = Path(__file__).resolve().parents[3]
TRAIN = {
    "kind": "train",
    "step": 8,
    "total_steps": 24,
    "epoch": 0,
    "loss": 2.5,
    "events_per_second": 1e4,
    "seconds_left": 3.0,
    "next_checkpoint": 10,
}
RAW: list[tuple[dict[str, Any], shoal.Event | None]] = [
    ({"kind": "stage", "stage": "train", "status": "started"}, shoal.Stage("train", "started")),
    ({"kind": "plan", "tables": {"item": "row_wise"}}, shoal.Planned({"item": "row_wise"})),
    ({"kind": "explain", "done": 1, "total": 3, "owners": 40}, shoal.Progress("explain", 1, 3, "40 users")),
    ({"kind": "recommend", "done": 1, "total": 3, "owners": 40}, shoal.Progress("recommend", 1, 3, "40 lists")),
    ({"kind": "contributions", "done": 1, "total": 11}, shoal.Progress("prune", 1, 11, "evaluation 1/11")),
    ({"kind": "restart", "text": "rank 1 failed", "cause": "failure"}, shoal.Restarted("rank 1 failed", "failure")),
    ({"kind": "evaluation_restart", "text": "rank 0 died", "trace": ""}, None),  # a warning follows it
    (
        {"kind": "recovered", "seconds": 12.0, "parts": {}, "steps": 1, "rows": 64},
        shoal.Message("training again after 12.0 s; 1 step (64 rows) trained again"),
    ),
    ({"kind": "resumed", "step": 5, "path": "a/step_5"}, shoal.Resumed(5, Path("a/step_5"))),
    (TRAIN, shoal.TrainingStep(8, 24, 0, 2.5, 1e4, 3.0, 10)),
    ({**TRAIN, "day": "2026-01-02"}, shoal.TrainingStep(8, 24, 0, 2.5, 1e4, 3.0, 10, "2026-01-02")),
    (
        {"kind": "validation", "step": 8, "metrics": {"mrr": 0.5}, "best": {"step": 8, "value": 0.5}},
        shoal.Validation(8, {"mrr": 0.5}, is_best=True),
    ),
    (
        {"kind": "validation", "step": 8, "metrics": {"mrr": 0.5}, "best": {"step": 4, "value": 0.6}},
        shoal.Validation(8, {"mrr": 0.5}, is_best=False),
    ),
    (
        {"kind": "progressive", "step": 8, "begins": "2026-01-02", "metrics": {"auc": 0.5}},
        shoal.DayEvaluated(8, "2026-01-02", {"auc": 0.5}),
    ),
    (
        {"kind": "checkpoint", "step": 8, "path": "a/step_8", "seconds": 0.1},
        shoal.CheckpointSaved(8, Path("a/step_8"), 0.1),
    ),
    ({"kind": "evaluate", "done": 1, "total": 1000}, shoal.Progress("evaluate", 1, 1000, "batch 1/1,000")),
    ({"kind": "validate", "done": 2, "total": 3}, shoal.Progress("validate", 2, 3, "batch 2/3")),
    ({"kind": "phase", "text": "train: building"}, shoal.Message("train: building ...")),
    ({"kind": "warning", "text": "careful"}, shoal.WarningRaised("careful")),
    (
        {
            "kind": "straggler",
            "step": 40,
            "rank": 1,
            "factor": 3.0,
            "share": 0.5,
            "share_of_events": 0.6,
            "host": "gpu-7",
        },
        shoal.WarningRaised(
            "rank 1 on gpu-7 is slow: it has 60% of the events and works 3.0 times as long as the other ranks (median); "
            "they wait for it 50% of a step"
        ),
    ),
    ({"kind": "resources", "rank": 0, "peak_bytes": 1, "seconds": 1.0}, None),
    ({"kind": "starts", "step": 8, "best": {"step": 8, "value": 0.5, "evaluations_since": 0}, "counted": 8}, None),
]


@pytest.mark.parametrize(("raw", "typed"), RAW)
def test_each_event_has_a_type(raw: dict[str, Any], typed: shoal.Event | None) -> None:
    assert event_of(raw) == typed


def sent_kinds() -> Iterator[str]:
    """Yield the kinds of all events that the driver and the workers send, as the sources name them."""
    for source in [*(ROOT / "cluster").rglob("*.py"), *(ROOT / "trainer").rglob("*.py")]:
        text = source.read_text(encoding="utf-8")
        yield from re.findall(r'(?:send|on_event|restart)\(\s*\{\s*"kind": "(\w+)"', text)
        yield from re.findall(r'\bevent = \{\s*"kind": "(\w+)"', text)
        yield from re.findall(r'(?:messages|self)\.send\(\s*"(\w+)"', text)
        yield from re.findall(r'_batch_counter\("(\w+)"', text)


def test_no_event_of_the_driver_or_of_workers_is_left_out() -> None:
    assert {*sent_kinds()} == {raw["kind"] for raw, _ in RAW}


def test_a_listener_hears_of_everything_once_and_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[shoal.Event] = []
    with ListeningView(quiet=True, listener=heard.append) as view:
        view.print_line("dataset: 3 users")
        view.update("prepare", 1, 2, "read, 5 rows")
        for raw, _ in RAW:
            view.on_event(raw)
        view.print_line("train: ended")
    assert heard == [
        shoal.Message("dataset: 3 users"),
        shoal.Progress("prepare", 1, 2, "read, 5 rows"),
        *(typed for _, typed in RAW if typed is not None),
        shoal.Message("train: ended"),
    ]
    assert capsys.readouterr() == ("", "")


def test_quiet_does_not_swallow_what_a_listener_prints_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which a console takes anything for a terminal
    with ListeningView(quiet=True, listener=print) as view:
        assert view.console.is_terminal
        view.update("prepare", 1, 2, "read, 5 rows")
    assert capsys.readouterr().out == f"{shoal.Progress('prepare', 1, 2, 'read, 5 rows')}\n"


def test_without_quiet_the_console_shows_what_the_command_shows(capsys: pytest.CaptureFixture[str]) -> None:
    with ListeningView(quiet=False, listener=None) as view:
        view.print_line("dataset: 3 users")
        view.on_event({"kind": "warning", "text": "careful"})
    assert capsys.readouterr().out.splitlines() == ["dataset: 3 users", "warning: careful"]
