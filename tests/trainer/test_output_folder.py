"""An output folder is locked by one command at a time, and released even after an error."""

import re
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.output_folder import OwnNames, is_finished, writing


def held(folder: Path) -> AbstractContextManager[None]:
    return writing(folder, f"dataset {folder}", "preparing it", "", "choose another run.dataset")


def test_a_folder_is_held_by_one_command_and_then_released(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "part").touch()
    with held(folder), pytest.raises(UserError, match="another command is preparing it right now"), held(folder):
        pass
    with pytest.raises(ZeroDivisionError), held(folder):
        raise ZeroDivisionError
    with held(folder):
        pass


def test_a_new_folder_that_stays_empty_is_removed(tmp_path: Path) -> None:
    with held(tmp_path / "dataset"):
        pass
    assert not (tmp_path / "dataset").exists()


OWN = OwnNames("record.json", ".work-", re.compile(r"part-\d\.parquet"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], False),
        ([".work-1", "part-1.parquet"], False),
        (["record.json", "anything"], True),
        (
            ["part-1.parquet"],
            r"in use by something else \(it holds part-1\.parquet\); choose another one, or empty the",
        ),
        ([".work-1", "notes.txt"], r"in use by something else \(it holds notes\.txt\)"),
        (["a", "b", "c", "d"], r"\(it holds a, b, c, \.\.\.\)"),
    ],
)
def test_a_folder_is_free_finished_or_in_use(tmp_path: Path, names: list[str], expected: bool | str) -> None:
    for name in names:
        (tmp_path / name).touch()
    if isinstance(expected, str):
        with pytest.raises(UserError, match=f"^the set: .*{expected}"):
            is_finished(tmp_path, OWN, "the set", "choose another one")
    else:
        assert is_finished(tmp_path, OWN, "the set", "choose another one") is expected


def test_a_missing_folder_is_free_and_a_file_is_refused(tmp_path: Path) -> None:
    assert not is_finished(tmp_path / "missing", OWN, "the set", "choose another one")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="the set: is not a folder; choose another one"):
        is_finished(tmp_path / "file", OWN, "the set", "choose another one")
