"""The log of a rank holds all that its process writes, also below Python, and the output is restored afterwards."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
from cluster.workers.mailbox import Place
from cluster.workers.rank_log import rank_log
folder = sys.argv[1] if len(sys.argv) > 1 else None
with rank_log(folder, 3, Place("host", "node", 7, 0.0)) as log:
    log.write("a line")
    print("printed", flush=True)
    os.write(2, b"of a library\\n")
    if "crash" in sys.argv:
        import ctypes
        ctypes.string_at(0)
print("after")
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, cwd=os.getcwd())


def test_all_output_of_a_rank_is_in_its_log(tmp_path: Path) -> None:
    for _ in range(2):  # a second attempt appends
        done = run(str(tmp_path / "logs"))
        assert (done.returncode, done.stdout, done.stderr) == (0, "after\n", "")
    text = (tmp_path / "logs/rank-3.log").read_text()
    for line in ("worker starts as process 7 on node node", "rank 3 on host: a line", "printed", "of a library"):
        assert text.count(line) == 2


def test_a_crash_leaves_its_trace_in_the_log(tmp_path: Path) -> None:
    assert run(str(tmp_path), "crash").returncode < 0
    assert "Fatal Python error: Segmentation fault" in (tmp_path / "rank-3.log").read_text()


def test_a_folder_that_cannot_be_written_leaves_the_output_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in ([], [str(tmp_path / "file/logs")]):
        done = run(*arguments)
        assert done.returncode == 0
        assert "a line" in done.stdout
        assert "printed" in done.stdout
