"""`shoal checkpoint verify`: every file is compared with its hash, and the exit code says whether all are whole."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from tests.support.committed import commit_checkpoint


def verified(run_dir: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["checkpoint", "verify", str(run_dir), *options])
    return done.exit_code, done.stdout


def test_checkpoints_that_are_whole_end_with_0(tmp_path: Path) -> None:
    for step in (3, 6):
        commit_checkpoint(tmp_path / "checkpoints", step)
    assert verified(tmp_path) == (0, "step_000000006  ok\nstep_000000003  ok\n")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_one_flipped_bit_ends_with_2_and_names_the_file(tmp_path: Path, options: list[str]) -> None:
    commit_checkpoint(tmp_path / "checkpoints", 3)
    damaged = commit_checkpoint(tmp_path / "checkpoints", 6) / "weights.bin"
    damaged.write_bytes(bytes([damaged.read_bytes()[0] ^ 1]) + damaged.read_bytes()[1:])
    code, printed = verified(tmp_path, *options)
    assert code == 2
    assert "weights.bin is corrupt" in printed
    if options:
        assert json.loads(printed)["checkpoints"]["step_000000003"] == "ok"
