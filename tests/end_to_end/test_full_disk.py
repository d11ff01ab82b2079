"""A whole run on a real disk that fills while workers train: the message, what is left, and the rerun."""

import json
import time
from pathlib import Path

from tests.end_to_end.commands import DEADLINE, finish, refused_by, shoal
from tests.faults.full_disk import FILLER, fill, small_disk, temporary_files
from trainer.checkpoint import folder as checkpoint_folder
from trainer.fault_points import VARIABLE

ROOM_BYTES = 48 << 10  # enough for rows of metrics, too little for the 250 KB of a checkpoint
# Steps after the first checkpoint take long enough to fill the disk before the next one is begun: one that is being written
# would take the room of the metrics. Both ranks are slow, because a single one would be named.
SLOW = [
    {
        "name": f"slow-{rank}",
        "point": "data",
        "rank": rank,
        "step": 10,
        "action": "slow",
        "seconds": 0.2,
        "repeats": True,
    }
    for rank in (0, 1)
]


def test_a_disk_that_fills_while_two_workers_train_is_one_message_and_the_rerun_resumes(
    config: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        run_dir = disk / "run"
        settings = (
            f"run.dir={run_dir}", "cluster.num_workers=2", "checkpoint.every_steps=10", "train.epochs=2", "train.sample_log=false"
        )  # fmt: skip
        command = ["run", str(config), *(part for setting in settings for part in ("--set", setting))]
        (tmp_path / "faults.json").write_text(json.dumps(SLOW))
        process = shoal(*command, environment={VARIABLE: str(tmp_path / "faults.json")})
        end = time.monotonic() + DEADLINE
        while not checkpoint_folder.committed(run_dir / "checkpoints"):
            assert time.monotonic() < end
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        fill(disk, ROOM_BYTES)
        message = refused_by(process)
        newest = checkpoint_folder.committed(run_dir / "checkpoints")[0]
        step = checkpoint_folder.verify(newest).step
        assert step == 10
        assert message.count("\n") == 1
        assert str(newest.with_name(checkpoint_folder.name_of(step + 10))) + ": could not be written by rank" in message
        assert "no space is left on the disk. Free some" in message
        assert "run the same command again" in message
        assert temporary_files(disk) == []
        train = json.loads((run_dir / "state.json").read_text())["stages"]["train"]
        assert train["status"] == "failed"
        assert train["reason"] in message

        (disk / FILLER).unlink()
        code, out, err = finish(shoal(*command))
        assert code == 0, err
        assert f"resumed from {newest}" in out
        assert checkpoint_folder.committed(run_dir / "checkpoints")[0].name == checkpoint_folder.name_of(60)
