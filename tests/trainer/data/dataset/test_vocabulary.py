"""A vocabulary that cannot be read is an error that names its file, as that of every other file of a dataset."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.datasets import tiny_dataset
from trainer.data.dataset.vocabulary import ids_of_numbers, read_train_events, read_values, read_vocabulary
from trainer.errors import UserError


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_a_damaged_vocabulary_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    manifest = tiny_dataset(tmp_path)
    damage(tmp_path / manifest.vocabulary.path)
    for read in (read_vocabulary, read_train_events, ids_of_numbers, lambda *of: read_values(*of, "item")):
        with pytest.raises(UserError, match=f"{manifest.vocabulary.path}: cannot be read"):
            read(tmp_path, manifest)
