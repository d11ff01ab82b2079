"""A folder that is written is held by one command at a time, and released however its work ends."""

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.output_folder import writing


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


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with held(tmp_path / "dataset"):
        pass
    assert not (tmp_path / "dataset").exists()
