"""A config that is simulated."""

from pathlib import Path

import pytest


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(
        f'[run]\ndir = "{tmp_path / "run"}"\n[logs]\npath = "events.parquet"\n[model]\nmax_history = 100\n'
        '[model.objective]\nkind = "sampled_softmax"\nnum_negatives = 128\n[cluster]\nnum_workers = 4\n[train]\nbatch_size = 64\n'
    )
    return path
