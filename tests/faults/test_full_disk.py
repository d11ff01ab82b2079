"""A disk that takes no more ends a command with one message: the path, the cause, what to do; no temporary file stays."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import app as cli
from cluster.driver.progress import View, plain_console
from cluster.driver.run_lock import locked
from cluster.driver.stage_record import StageRecord
from cluster.errors import RunFailedError, WorkersFailedError
from cluster.study import trial as study_trial
from cluster.study.trials import Trial
from sharding.world import World
from tests.contracts.test_nonfinite import run
from tests.faults.full_disk import FailingWrites, fill, small_disk, temporary_files
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job
from trainer.checkpoint import folder as checkpoint_folder
from trainer.config.job import Job
from trainer.errors import UserError
from trainer.storage.files import disk_refusal, write_json_atomically

WORKLOAD = """
batch_size = 8
[topology]
device = "cuda"
devices = 2
[[table]]
name = "item"
rows = 1000
dim = 8
"""


def ends(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """(exit code, stderr) of a command in this process."""
    monkeypatch.setattr("sys.argv", ["shoal", *arguments])
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # as Ray was imported; the command would set it for good
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), capfd.readouterr().err


def assert_one_message(code: int, message: str, folder: Path) -> None:
    assert code == 2, message
    assert "Traceback" not in message
    assert str(folder) in message
    assert any(word in message for word in ("space", "disk")), message
    assert temporary_files(folder) == []


def test_synth_and_plan_and_status_of_a_full_disk(tmp_path, monkeypatch, capfd):
    (tmp_path / "w.toml").write_text(WORKLOAD)
    with small_disk(tmp_path / "disk") as disk:
        fill(disk)
        synth = ["synth", str(disk / "logs"), "--users", "50", "--items", "200"]
        plan = ["plan", str(tmp_path / "w.toml"), "--out", str(disk / "plan")]
        config = tmp_path / "run.toml"
        config.write_text(f'run.dir = "{disk}/run"\nlogs.path = "{tmp_path}/none.parquet"\n')
        for arguments in (synth, plan, ["run", str(config)], ["train", str(config)], ["evaluate", str(config)]):
            code, message = ends(arguments, monkeypatch, capfd)
            assert_one_message(code, message, disk)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_refused_write_is_reported_with_path_and_cause(number):
    text = disk_refusal(OSError(number, os.strerror(number), "/a/file"))
    assert text is not None
    assert text.startswith("/a/file: cannot be read or written: ")
    assert "run the same command again" in text


def test_other_errors_are_none_of_the_disk():
    assert disk_refusal(ConnectionRefusedError(errno.ECONNREFUSED, "refused")) is None
    assert disk_refusal(OSError("something")) is None


def test_a_small_file_names_what_could_not_be_written(tmp_path, monkeypatch):
    for at in (1, 2):
        with monkeypatch.context() as patch:
            FailingWrites(patch, tmp_path, at)
            with pytest.raises(OSError, match="No space left") as caught:
                write_json_atomically(tmp_path / "state.json", {"a": 1})
        assert caught.value.filename == str(tmp_path / "state.json")
        assert list(tmp_path.iterdir()) == []


# Stages


def failing_with(error: Exception) -> Any:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device", "/a/report.html"), ValueError("a bug"), UserError("change this")],
)
def test_a_stage_that_fails_is_no_longer_running(tmp_path, error):
    record = StageRecord(tmp_path)
    record.begin("train", "inputs")
    with pytest.raises(type(error)):
        record.run_stages({"train": "inputs"}, failing_with(error))
    entry = record.read()["stages"]["train"]
    assert entry["status"] == "failed"
    assert str(error) in entry["reason"]


def test_a_failure_that_cannot_be_recorded_is_still_reported(tmp_path, monkeypatch):
    record = StageRecord(tmp_path)
    record.begin("train", "inputs")
    FailingWrites(monkeypatch, tmp_path, 1)
    with pytest.raises(UserError, match="the disk of rank 1 is full"):
        record.run_stages({"train": "inputs"}, failing_with(UserError("the disk of rank 1 is full")))
    with pytest.raises(RunFailedError, match="rank 0 died") as caught:
        record.run_stages({"train": "inputs"}, failing_with(WorkersFailedError("rank 0 died", "trace")))
    assert "failure.log" not in str(caught.value)
    assert temporary_files(tmp_path) == []


def test_the_lock_of_a_run_on_a_full_disk_is_still_a_lock(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        (disk / "run" / "dataset").mkdir(parents=True)
        fill(disk)
        with locked(disk / "run"), pytest.raises(UserError, match="in use by"), locked(disk / "run"):
            pass


# Training


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_dataset(folder / "dataset")
    return folder / "dataset"


def run_on_full_disk(world: World, job: Job, broken: str, at: int) -> str:
    """Return the message of a training in which the first rank's writes of these files fail."""
    with pytest.MonkeyPatch.context() as patch:
        if world.is_first:
            FailingWrites(patch, job.run_dir / broken, at)
        try:
            message, _ = run(world, job)
        except OSError as error:
            message = disk_refusal(error) or repr(error)
    return message


@pytest.mark.parametrize(
    ("broken", "at"), [("metrics.jsonl", 3), ("checkpoints", 1), ("checkpoints", 4), ("checkpoints/best.json", 1)]
)
def test_a_disk_that_fills_while_training_leaves_a_run_that_resumes(rank_pool, dataset, tmp_path, broken, at):
    early = {"early_stopping": {"metric": "ndcg@10", "patience": 50}, "evaluate_every_epochs": 1}
    job = tiny_job(tmp_path / "run", dataset, train=early, checkpoint={"every_steps": 2})
    [message] = rank_pool.run(1, run_on_full_disk, job, broken, at)
    assert "No space left" in message or "no space is left" in message
    assert str(tmp_path / "run" / broken.split("/")[0]) in message
    assert temporary_files(tmp_path / "run") == []
    assert rank_pool.run(1, run, job)[0][0] == ""
    newest, complaints = checkpoint_folder.newest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert (newest.manifest.step, complaints) == (24, [])


def test_a_checkpoint_on_a_full_disk_leaves_no_attempt(rank_pool, dataset, tmp_path):
    """Really full, so that what torch writes fails too."""
    with small_disk(tmp_path / "disk", "200k") as disk:
        job = tiny_job(disk / "run", dataset, train={"sample_log": False}, checkpoint={"every_steps": 1, "keep": 100})
        messages = []
        for _ in range(2):  # the rerun while it is still full is one message too
            try:
                messages.append(rank_pool.run(1, run, job)[0][0])
            except OSError as error:
                messages.append(disk_refusal(error))
        for message in messages:
            assert "no space is left on the disk. Free some" in message
            assert str(disk / "run") in message
            assert "/.step" not in message  # a name that the user never sees
        assert temporary_files(disk) == []
        for path in checkpoint_folder.committed(disk / "run" / "checkpoints"):
            checkpoint_folder.verify(path)


# Studies


def test_a_trial_on_a_full_disk_is_a_failed_trial(tmp_path, monkeypatch):
    job = tiny_job(tmp_path / "trial", tmp_path / "dataset")
    from cluster.config.run_config import check_config

    config = check_config(job.config_values, "test")
    task = study_trial.Task(Trial("a", 0, 1, config), "digest", ("validation",), True, "ndcg@10")
    (tmp_path / "trial" / "dataset").mkdir(parents=True)
    FailingWrites(monkeypatch, tmp_path / "trial", 1)
    record = study_trial.run_trial(task, lambda event: None)
    assert record.status == "failed"
    assert "no space is left" in record.reason


# What is printed


def test_text_that_looks_like_markup_is_printed_unchanged(capsys):
    view = View(plain_console())
    hostile = "a[/b] [red]x[/red] :cat: [link=file:///etc]"
    view.print_line(hostile)
    view.on_event({"kind": "warning", "text": hostile})
    view.on_event({"kind": "resumed", "path": hostile})
    view.update("train", 1, 2, hostile)
    assert capsys.readouterr().out.count(hostile) == 4


def test_no_console_of_the_commands_reads_markup():
    """A console is made in one place; what is printed without it says so itself."""
    folder = Path(cli.__file__).parents[1]
    made = [path.name for path in sorted(folder.rglob("*.py")) if " Console(" in path.read_text(encoding="utf-8")]
    assert made == ["progress.py"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "[/b].toml"],
        ["run", "CONFIG", "--set", "tables.item=5"],
        pytest.param(
            ["run", "CONFIG", "--set", "run.dir=[/b]", "--set", "logs.path=[/b].parquet"],
            marks=pytest.mark.ray,  # logs are looked for after Ray has started
        ),
        ["run", "CONFIG", "--set", "[/b]=1"],
        ["prepare", "CONFIG", "--set", "cluster.collective_timeout_seconds=inf"],
        ["prepare", "CONFIG", "--set", f"run.seed={2**64}"],
        ["status", "[/b]"],
        ["synth", "OUT", "--users", "[/b]"],
        ["synth", "OUT", "--events-per-user", "inf"],
        ["synth", "OUT", "--events-per-user", "nan"],
        ["synth", "OUT", "--seed", str(2**70)],
        ["synth", "OUT", "--set", "[/b]=1"],
        ["convert", "[/b]", "SOURCE", "OUT"],
        ["plan", "CONFIG", "--devices", str(2**70)],
        ["plan", "CONFIG", "--rows", "[/b]"],
        ["study", "CONFIG", "--set", "study=5"],
        ["study", "CONFIG", "--set", "study.seeds=[inf]"],
        ["checkpoint", "verify", "[/b]"],
        ["checkpoint", "inspect", "[/b]"],
    ],
)
def test_a_mistyped_setting_is_one_message_without_traceback(request, tmp_path, monkeypatch, capfd, arguments):
    if request.node.get_closest_marker("ray"):
        request.getfixturevalue("ray_session")
    (tmp_path / "run.toml").write_text('logs.path = "none.parquet"\n')
    monkeypatch.chdir(tmp_path)
    names = {"CONFIG": str(tmp_path / "run.toml"), "OUT": str(tmp_path / "out"), "SOURCE": str(tmp_path)}
    code, message = ends([names.get(argument, argument) for argument in arguments], monkeypatch, capfd)
    assert code == 2, message
    assert "Traceback" not in message
