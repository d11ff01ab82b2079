"""The benchmark of exchanged examples: the dataset has the stated histories, and the page has the stored figures."""

import json
from pathlib import Path

import numpy as np

from benchmarks import exchanged_examples
from benchmarks.exchanged_examples import PAGE, RESULTS, with_tables, write_dataset
from trainer.data.dataset.manifest import read_manifest
from trainer.data.stream.row_groups import RowGroupReader


def test_the_page_has_the_stored_figures():
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page, json.loads(RESULTS.read_text(encoding="utf-8"))) == page


def test_histories_are_uneven(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(exchanged_examples, "NUM_USERS", 2000)
    write_dataset(tmp_path / "dataset")
    manifest = read_manifest(tmp_path / "dataset")
    lengths = RowGroupReader(tmp_path / "dataset", manifest).train_ends()
    assert lengths.size == 2000
    assert 80 < lengths.mean() < 110
    assert lengths.std() > 60
    assert np.quantile(lengths, 0.9) > 180
