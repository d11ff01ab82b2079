"""Memory that is left: of the machine, or of a container with less."""

from pathlib import Path

import psutil

from cluster.workers.memory import free_memory


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    assert free_memory(tmp_path / "none") > 0
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\ninactive_file 150000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    assert free_memory(tmp_path) == 450000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) > psutil.virtual_memory().total // 100
