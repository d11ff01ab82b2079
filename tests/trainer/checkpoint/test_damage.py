"""A damaged checkpoint is detected whatever the damage is; the one before it is used, and that is said."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.checkpoint.plain import assert_same, find, load_plain, save_plain, tensors_at
from trainer.checkpoint import folder as checkpoint_folder

TRIALS = 200


def test_200_flipped_bytes_over_all_files_are_all_detected_and_the_checkpoint_before_is_used(tmp_path: Path) -> None:
    save_plain(tmp_path, 1)
    newest = save_plain(tmp_path, 2)
    names = sorted(path.name for path in newest.iterdir())
    assert {".metadata", "__0_0.distcp", "manifest.json"} <= set(names)
    draw = random.Random(21)
    detected: Counter[str] = Counter()
    for trial in range(TRIALS):
        path = newest / names[trial % len(names)]
        intact = path.read_bytes()
        place = draw.randrange(len(intact))
        flipped = bytes([intact[place] ^ draw.randrange(1, 256)])
        path.write_bytes(intact[:place] + flipped + intact[place + 1 :])
        checkpoint, complaints = find(tmp_path)
        assert checkpoint is not None
        assert checkpoint.manifest.step == 1, (trial, path.name, place)
        assert len(complaints) == 1
        assert str(newest) in complaints[0]
        assert path.name in complaints[0]
        detected[path.name] += 1
        path.write_bytes(intact)
    assert sum(detected.values()) == TRIALS
    assert set(detected) == set(names)
    checkpoint, complaints = find(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.manifest.step, complaints) == (2, [])
    assert_same(load_plain(checkpoint.path, tensors_at(2)), tensors_at(2))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "manifest.json"])
@pytest.mark.parametrize("damage", [cut, empty, Path.unlink])
def test_a_truncated_or_missing_file_is_named_and_the_checkpoint_before_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    save_plain(tmp_path, 1)
    newest = save_plain(tmp_path, 2)
    damage(newest / name)
    for checkpoint, complaints in (find(tmp_path), checkpoint_folder.newest(tmp_path)):
        assert checkpoint is not None
        assert checkpoint.manifest.step == 1
        assert len(complaints) == 1
        assert str(newest) in complaints[0]
        assert name in complaints[0]
    # Training reaches the step again, and replaces what is left.
    assert save_plain(tmp_path, 2) == newest
    checkpoint, complaints = find(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.manifest.step, complaints) == (2, [])
