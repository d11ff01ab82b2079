"""A node that is lost is no place for workers at once, although Ray counts it as alive for much longer."""

import json
import subprocess
import sys

import pytest


@pytest.mark.faults
def test_workers_start_on_the_nodes_that_are_left() -> None:
    """In a process of its own: a process has one Ray session."""
    command = [sys.executable, "-m", "tests.end_to_end.lost_node"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stderr.splitlines()[-1])
    assert seen == {"alive": 2, "lost": True, "room": 1, "starts": True}
