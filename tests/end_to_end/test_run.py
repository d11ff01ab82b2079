"""The command as a person uses it: run, Ctrl-C, run again, wrong input. Real processes, with deadlines."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.end_to_end.commands import DEADLINE, Submitted, finish, refused, shoal, succeed
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import FILE_HASH


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end and process.poll() is None:
        path = run_dir / "metrics.jsonl"
        if path.exists() and any(
            json.loads(x)["step"] >= step for x in path.read_text().splitlines()[-1:] if x.endswith("}")
        ):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached: {process.communicate()}")


def test_a_run_that_lost_a_worker_and_was_stopped_ends_bit_for_bit_as_one_on_a_cluster_that_did_not(
    config: Path, submitted: Submitted, tmp_path: Path
) -> None:
    whole, pieces = submitted.run_dir, tmp_path / "pieces"
    command = ["run", str(config), "--set", f"run.dir={pieces}", "--set", f"run.dataset={whole / 'dataset'}"]
    _lose_a_worker(shoal(*command, "--set", "cluster.recovery.failures_per_hour=0"), pieces, at_step=40)
    assert 25 <= _newest_step(pieces) < 180
    _stop(shoal(*command), pieces, at_step=90)
    assert 90 <= _newest_step(pieces) < 180
    answer = succeed(*command)

    assert answer["training"] == json.loads((whole / "state.json").read_text())["stages"]["train"]["result"]
    assert answer["results"] == json.loads((whole / "evaluation/test/metrics.json").read_text())
    actual, expected = (checkpoint_folder.committed(folder / "checkpoints") for folder in (whole, pieces))
    assert [p.name for p in actual] == [p.name for p in expected]
    for a, b in zip(actual, expected, strict=True):
        assert tensor_hashes(a) == tensor_hashes(b)
    for rank in (0, 1):
        log = f"sample_log/rank-{rank}.jsonl"
        assert (whole / log).read_text() == (pieces / log).read_text()
        steps = [json.loads(line)["step"] for line in (whole / log).read_text().splitlines()]
        assert steps == list(range(1, answer["training"]["step"] + 1))
    _check_outputs(pieces, answer)


def _lose_a_worker(process: subprocess.Popen[str], run_dir: Path, at_step: int) -> None:
    wait_for_step(run_dir, at_step, process)
    family = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in family if "RayTrainWorker" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    code, out, err = finish(process)
    assert code == 1, (out, err)
    assert "Traceback" not in out + err
    assert "died" in err
    assert "rank " in err
    assert "Run the same command again" in err
    assert (run_dir / "failure.log").read_text()


def _stop(process: subprocess.Popen[str], run_dir: Path, at_step: int) -> None:
    wait_for_step(run_dir, at_step, process)
    os.kill(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 1, err
    assert "run the same command again" in err
    assert "Traceback" not in err


def _newest_step(run_dir: Path) -> int:
    return checkpoint_folder.read(checkpoint_folder.committed(run_dir / "checkpoints")[0]).step


def tensor_hashes(checkpoint: Path) -> dict[str, str]:
    """sha256 of the files that hold every weight, optimizer slot and step count: equal hashes are equal bits."""
    files = checkpoint_folder.verify(checkpoint).files
    return {Path(name).name: entry[FILE_HASH] for name, entry in files.items() if name.endswith(".distcp")}


def _check_outputs(run_dir: Path, answer: dict[str, Any]) -> None:
    metrics = json.loads((run_dir / "evaluation/test/metrics.json").read_text())
    assert metrics == answer["results"]
    assert metrics["num_users"] == 240
    assert metrics["metrics"]["ndcg@10"] > 2 * metrics["baselines"]["popularity"]["ndcg@10"]
    per_user = pq.read_table(run_dir / "evaluation/test/per_user.parquet")
    assert per_user.num_rows == 240
    assert sum(per_user.column("hr@10").to_pylist()) / 240 == pytest.approx(metrics["metrics"]["hr@10"])
    assert (run_dir / "evaluation/test/report.html").read_text().startswith("<!doctype html>")
    assert json.loads((run_dir / "plan.json").read_text())["tables"]["item"]["num_rows"] > 1
    assert list((run_dir / "tensorboard").iterdir())


def test_sigterm_outside_training_is_one_line_and_the_next_command_resumes(config: Path, tmp_path: Path) -> None:
    """Ray's own handler would dump a stack and exit with 134."""
    command = ["prepare", str(config), "--set", f"run.dir={tmp_path / 'run'}"]
    process = shoal(*command)
    end = time.monotonic() + DEADLINE
    while not list((tmp_path / "run").glob("dataset/.work-*")):
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 143, err
    assert err == "shoal: interrupted; run the same command again to resume\n"
    assert succeed(*command)["counts"]["num_users"] == 240


def test_wrong_settings_are_named_before_anything_starts(config, tmp_path):
    run_dir = ["--set", f"run.dir={tmp_path / 'run'}"]
    assert "train.batchsize: no such setting; did you mean train.batch_size?" in refused(
        "run", str(config), *run_dir, "--set", "train.batchsize=3"
    )
    assert "model.encoder.kind" in refused("run", str(config), *run_dir, "--set", 'model.encoder.kind="sasrek"')
    assert "no such file" in refused("run", str(tmp_path / "absent.toml"))
    message = refused("run", str(config), *run_dir, "--set", "cluster.num_workers=4096")
    assert "cluster.num_workers = 4096" in message
    assert "CPUs" in message
    assert not (tmp_path / "run" / "dataset").exists()


def test_a_run_folder_with_other_files_is_refused(config, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    message = refused("run", str(config), "--set", f"run.dir={tmp_path / 'precious'}")
    assert "choose another run.dir" in message
    assert [p.name for p in (tmp_path / "precious").iterdir()] == ["thesis.txt"]


def test_a_missing_column_is_one_message_naming_file_and_setting(config, tmp_path):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user_id": [1, 1], "itemid": [2, 3], "time": [1, 2]}), path)
    message = refused("prepare", str(config), "--set", f"run.dir={tmp_path / 'run'}", "--set", f"logs.path={path}")
    assert str(path) in message
    assert "logs.item" in message
    assert "itemid" in message
