"""A cluster of a test that is killed ends: nothing is left of it."""

import subprocess
import sys
from pathlib import Path

import psutil

from tests.end_to_end.commands import ROOT
from tests.end_to_end.watched import wait_for

# A process with a child, each in a session of its own, stands for a head node with its raylet.
SLEEP = "import time; time.sleep(120)"
HEAD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True).wait()"
TESTS = f"""
import subprocess, sys, time
from pathlib import Path
from tests.end_to_end.ray_head import end_with_this_process
head = subprocess.Popen([sys.executable, "-c", {HEAD!r}], start_new_session=True)
end_with_this_process(head.pid, Path(sys.argv[1]))
print(head.pid, flush=True)
time.sleep(120)
"""


def test_a_killed_test_leaves_no_process_and_no_folder_of_its_cluster(tmp_path: Path) -> None:
    folder = tmp_path / "head"
    folder.mkdir()
    tests = subprocess.Popen([sys.executable, "-c", TESTS, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert tests.stdout is not None
    head = psutil.Process(int(tests.stdout.readline()))
    wait_for("the child of the head", head.children)
    family = [head, *head.children()]
    try:
        _, alive = psutil.wait_procs(family, timeout=3.0)
        assert set(alive) == set(family)  # as long as the test runs
        tests.kill()
        _, alive = psutil.wait_procs(family, timeout=30.0)
        assert not alive
        wait_for("the end of the folder", lambda: not folder.exists())
    finally:
        tests.kill()
        for process in family:
            if process.is_running():
                process.kill()
        tests.communicate()
