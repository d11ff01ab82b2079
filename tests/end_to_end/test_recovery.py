"""Recovery by the command itself: ranks that fail in any phase, and an end that is bit for bit that of an undisturbed run."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.commands import Submitted, finish, shoal
from tests.end_to_end.watched import check_exact
from trainer.fault_points import VARIABLE

# The checkpoints of the run are saved at the ends of epochs of 30 steps, and at multiples of 25.
IN_TESTS = [
    {"name": "forward", "point": "forward", "rank": 1, "step": 27, "action": "kill"},
    {"name": "stopped", "point": "backward", "rank": 0, "step": 52, "action": "stop"},
    {"name": "commit", "point": "before commit", "rank": 0, "step": 100, "action": "kill"},
]
ALL = [
    {"name": "first", "point": "data", "rank": 0, "step": 0, "action": "kill"},
    {"name": "data", "point": "data", "rank": 1, "step": 28, "action": "kill"},
    {"name": "again", "point": "forward", "rank": 0, "step": 29, "action": "kill"},
    {"name": "backward", "point": "backward", "rank": 0, "step": 55, "action": "kill"},
    {"name": "optimizer", "point": "optimizer", "rank": 1, "step": 57, "action": "kill"},
    {"name": "exception", "point": "optimizer", "rank": 0, "step": 77, "action": "exception"},
    {"name": "staging", "point": "staging", "rank": 1, "step": 90, "action": "kill"},
    {"name": "writing", "point": "writing", "rank": 1, "step": 90, "action": "kill"},
    {"name": "hashing", "point": "hashing", "rank": 0, "step": 100, "action": "kill"},
    {"name": "after commit", "point": "after commit", "rank": 0, "step": 125, "action": "kill"},
    {"name": "evaluation", "point": "evaluation", "rank": 1, "step": 150, "action": "kill"},
    {"name": "reporting", "point": "reporting", "rank": 0, "step": 150, "action": "kill"},
]


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(IN_TESTS, id="some"),
        pytest.param(ALL, id="all", marks=[pytest.mark.faults, pytest.mark.timeout(3600)]),
    ],
)
def test_a_run_recovers_by_itself_and_ends_bit_for_bit_as_an_undisturbed_one(
    config: Path, submitted: Submitted, tmp_path: Path, faults: list[dict[str, Any]]
) -> None:
    run_dir, undisturbed = tmp_path / "run", submitted.run_dir
    (tmp_path / "faults.json").write_text(json.dumps(faults))
    settings = {
        "run.dir": run_dir,
        "run.dataset": undisturbed / "dataset",
        "cluster.recovery.heartbeat_seconds": 5.0,
        "cluster.recovery.failures_per_hour": 100,
        "cluster.recovery.backoff_seconds": 0.0,
    }
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    process = shoal("run", str(config), *sets, "--json", environment={VARIABLE: str(tmp_path / "faults.json")})
    code, out, err = finish(process, 120.0 + 90.0 * len(faults))
    assert code == 0, err
    assert "Traceback" not in out + err

    happened = {path.name.split(".")[2] for path in tmp_path.glob("faults.json.*.happened")}
    assert happened == {fault["name"] for fault in faults}
    restarts = [json.loads(line) for line in (run_dir / "restarts.jsonl").read_text().splitlines()]
    assert len(restarts) == len(faults)
    for fault, restart in zip(faults, restarts, strict=True):
        assert restart["text"].startswith(f"rank {fault['rank']} "), (fault, restart)
        assert restart["text"] in err

    answer = json.loads(out)
    assert answer["training"] == json.loads((undisturbed / "state.json").read_text())["stages"]["train"]["result"]
    assert answer["results"] == json.loads((undisturbed / "evaluation/test/metrics.json").read_text())
    check_exact(run_dir, undisturbed)
