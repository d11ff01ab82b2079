"""A cut link between two ranks: both fail at the configured timeout, and the run resumes exactly when the link is back.

Each rank has a network namespace of its own, joined by a pair of virtual interfaces. That needs root and Linux's `ip`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.test_run import tensor_hashes
from tests.support.datasets import tiny_dataset
from trainer.checkpoint import folder as checkpoint_folder
from trainer.fault_points import VARIABLE

TIMEOUT = 5.0
ROOT = Path(__file__).parents[2]
NAMES = tuple(f"shoal{os.getpid()}{side}" for side in "ab")
pytestmark = [pytest.mark.faults, pytest.mark.slow]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def link() -> Iterator[None]:
    """Join two network namespaces by a pair of interfaces, 10.77.0.1 and 10.77.0.2."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "pair0", "netns", NAMES[0], "type", "veth", "peer", "name", "pair1", "netns", NAMES[1])
        for number, name in enumerate(NAMES):
            ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"pair{number}")
            for device in ("lo", f"pair{number}"):
                ip("-n", name, "link", "set", device, "up")
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def start(folder: Path, run: str, faults: bool) -> list[subprocess.Popen[str]]:
    """Start both ranks of a training."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment["PYTHONPATH"] = str(ROOT)
    if faults:
        environment[VARIABLE] = str(folder / "faults.json")
    return [
        subprocess.Popen(
            [
                *("ip", "netns", "exec", NAMES[rank], sys.executable, "-m", "tests.faults.partition_rank"),
                *(
                    str(rank),
                    f"pair{rank}",
                    "10.77.0.1:29517",
                    str(folder / run),
                    str(folder / "dataset"),
                    str(TIMEOUT),
                ),
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]


def ends(ranks: list[subprocess.Popen[str]]) -> list[str]:
    """Return the last line of each rank; end the ranks if they take too long."""
    try:
        return [rank.communicate(timeout=180.0)[0].splitlines()[-1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_both_sides_of_a_cut_link_fail_at_the_timeout_and_the_run_resumes_exactly(link: None, tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "dataset")
    assert ends(start(tmp_path, "whole", faults=False)) == ["finished", "finished"]
    slow = {"name": "slow", "point": "data", "rank": 0, "step": 7, "action": "slow", "seconds": 0.3, "repeats": True}
    (tmp_path / "faults.json").write_text(json.dumps([slow]))
    ranks = start(tmp_path, "cut", faults=True)
    log = tmp_path / "cut" / "sample_log" / "rank-0.jsonl"
    end = time.monotonic() + 180.0
    while len(lines(log)) < 9:
        assert time.monotonic() < end
        time.sleep(0.05)
    ip("-n", NAMES[1], "link", "set", "pair1", "down")
    cut = time.time()
    for text in ends(ranks):
        assert text.startswith("failed"), text
        # The wait begins with the next collective, up to one slow step after the cut.
        assert TIMEOUT - 1.0 <= float(text.split()[1]) - cut <= TIMEOUT + 1.0 + 0.3, text
    committed = Counter(path.name for path in checkpoint_folder.committed(tmp_path / "cut" / "checkpoints"))
    assert committed == {checkpoint_folder.name_of(5): 1}

    ip("-n", NAMES[1], "link", "set", "pair1", "up")
    assert ends(start(tmp_path, "cut", faults=False)) == ["finished", "finished"]
    for rank in (0, 1):
        name = f"sample_log/rank-{rank}.jsonl"
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()
    checkpoints = [checkpoint_folder.committed(tmp_path / run / "checkpoints") for run in ("cut", "whole")]
    assert [path.name for path in checkpoints[0]] == [path.name for path in checkpoints[1]]
    for one, other in zip(*checkpoints, strict=True):
        assert tensor_hashes(one) == tensor_hashes(other)
