"""Labels of nodes: Ray starts tasks and workers where Shoal counts room for them, and nowhere else."""

import json
import subprocess
import sys


def test_tasks_and_workers_start_on_the_nodes_with_the_labels() -> None:
    """In a process of its own: a process has one Ray session."""
    command = [sys.executable, "-m", "tests.end_to_end.labelled_nodes"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stderr.splitlines()[-1])
    assert seen == {"room": 2, "room_without_labels": 4, "tasks": True, "started": True, "group": True, "third": False}
