"""Logs, dataset, run folder and checkpoints on a real S3 server: trained, killed, resumed, evaluated, and free of credentials."""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.end_to_end.commands import finish, refused, shoal, succeed
from tests.end_to_end.ray_head import end_family, ray_head
from tests.end_to_end.test_cluster_job import STEPS_PER_EPOCH, later_logs, newest_step, rank_log
from tests.end_to_end.test_run import tensor_hashes
from tests.end_to_end.watched import WAIT_SECONDS, wait_for
from tests.support.s3_server import MISSING, SECRET, binary, s3_server
from trainer.checkpoint import folder as checkpoint_folder
from trainer.fault_points import VARIABLE
from trainer.storage.objects import paths
from trainer.storage.objects.paths import copy_file, path_of

pytestmark = pytest.mark.skipif(binary() is None, reason=MISSING)


@pytest.fixture
def bucket(config: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a bucket with the logs of the config. This process and those that it starts may use it."""
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        paths._filesystem.cache_clear()
        root = path_of(server.uri)
        for file in (config.parent / "events").glob("events-*.parquet"):
            copy_file(file, root / "logs" / file.name)
        yield root
        paths._filesystem.cache_clear()


def settings(bucket: Path, **others: object) -> list[str]:
    values = {"run.dir": bucket / "runs/demo", "logs.path": f"{bucket}/logs/events-*.parquet", **others}
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def check_no_credentials(bucket: Path) -> None:
    """Look for the secret in all objects, and for attempts that nobody removed."""
    texts = {path: path.read_bytes() for path in bucket.glob("**/*") if path.is_file()}
    assert [path for path, data in texts.items() if SECRET.encode() in data] == []
    assert [path for path in texts if ".work-" in str(path) or ".attempt" in str(path)] == []


def test_a_run_is_on_an_object_storage(config: Path, bucket: Path) -> None:
    run = bucket / "runs/demo"
    done = succeed("run", str(config), *settings(bucket, **{"train.epochs": 2}))
    assert done["results"] == json.loads((run / "evaluation/test/metrics.json").read_text())
    assert done["results"]["num_users"] == 240
    for rank in (0, 1):
        assert len((run / f"sample_log/rank-{rank}.jsonl").read_text().splitlines()) == 2 * STEPS_PER_EPOCH
        assert "job 2 is done" in rank_log(run, rank)
    assert (run / "dataset/card.html").is_file()
    assert list((run / "tensorboard").glob("events.*"))
    (listed,) = succeed("status", str(bucket / "runs"))["runs"]
    assert (listed["run"], listed["stage"]) == ("demo", "evaluate/test done")
    assert succeed("status", str(run))["checkpoints"][0] == f"step_{2 * STEPS_PER_EPOCH:09d}"
    assert set(succeed("checkpoint", "verify", str(run))["checkpoints"].values()) == {"ok"}
    check_no_credentials(bucket)
    assert "must be a local path" in refused("export", str(run), "--out", str(bucket / "export"))


@pytest.mark.faults
@pytest.mark.timeout(2400)
def test_a_run_lives_on_a_cluster_and_an_object_storage(config: Path, bucket: Path, tmp_path: Path) -> None:
    """One worker dies in the middle of its upload of a checkpoint, another one at any moment."""
    run = bucket / "runs/demo"
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps([{"name": "upload", "point": "writing", "rank": 1, "step": 40, "action": "kill"}]))
    with ray_head(environment={VARIABLE: str(faults)}) as head, ExitStack() as ended:
        submit = ["submit", str(config), "--dashboard", head.dashboard]
        first = shoal(*submit, *settings(bucket, **{"train.epochs": 100000}))
        ended.callback(end_family, first)
        wait_for("the death in an upload", lambda: (tmp_path / "faults.json.upload.happened").exists(), first)
        wait_for("a second attempt of rank 1", lambda: "attempt 2" in rank_log(run, 1), first)
        at_restart = newest_step(run)
        wait_for("a checkpoint after the restart", lambda: newest_step(run) > at_restart, first)
        assert "in use by" in refused("train", str(config), *settings(bucket, **{"train.epochs": 100000}))

        pid = re.findall(r"worker starts as process (\d+)", rank_log(run, 1))[-1]
        os.kill(int(pid), signal.SIGKILL)
        wait_for("a third attempt of rank 1", lambda: "attempt 3" in rank_log(run, 1), first)
        at_restart = newest_step(run)
        wait_for("a checkpoint after it", lambda: newest_step(run) > at_restart, first)
        assert succeed("status", str(bucket / "runs"))["runs"][0]["restarts"] == 2

        assert succeed("stop", str(run))["stages"]["train"] == "stopped"
        code, said, err = finish(first, WAIT_SECONDS)
        assert code == 1, said + err
        resumed = re.findall(r"resumed from \S*step_0*(\d+)", said)
        assert int(resumed[0]) == STEPS_PER_EPOCH  # not 50, which was being uploaded when the worker died
        step = newest_step(run)

        few = {"train.epochs": step // STEPS_PER_EPOCH + 2}
        code, said, err = finish(shoal(*submit, *settings(bucket, **few)), WAIT_SECONDS)
        assert code == 0, said + err
        assert f"resuming from checkpoint step_{step:09d}" in said

        later = bucket / "later/later.parquet"
        copy_file(Path(later_logs(config, tmp_path)), later)
        evaluation = ["submit", str(run / "config.json"), "--dashboard", head.dashboard, "--command", "evaluate"]
        code, said, err = finish(shoal(*evaluation, "--logs", str(later)), WAIT_SECONDS)
        assert code == 0, said + err
        (metrics,) = (run / "evaluation").glob("logs-later-*/test/metrics.json")
        assert json.loads(metrics.read_text())["protocol"]["num_events"] == 300
    check_no_credentials(bucket)

    undisturbed = tmp_path / "undisturbed"
    succeed("train", str(config), *settings(bucket, **few, **{"run.dir": undisturbed, "run.dataset": run / "dataset"}))
    for rank in (0, 1):
        log = f"sample_log/rank-{rank}.jsonl"
        assert (undisturbed / log).read_text() == (run / log).read_text()
    last = [checkpoint_folder.committed(folder / "checkpoints")[0] for folder in (run, undisturbed)]
    assert tensor_hashes(last[0]) == tensor_hashes(last[1])
