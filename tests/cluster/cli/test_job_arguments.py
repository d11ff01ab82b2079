"""Options of a command that is submitted: parsed by the command's own parser, with absolute paths."""

from pathlib import Path

import pytest

from cluster.cli.job_arguments import job_arguments
from trainer.errors import UserError


def test_paths_become_absolute_and_other_words_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--users", "u.csv", "--k=5", "--no-filter-viewed", "--history", "a", "--history", "s3://b/c", "--out", "o"]
    arguments = job_arguments("recommend", words)
    pairs = ["--k", "5", "--history", f"{tmp_path}/a", "--history", "s3://b/c", "--out", f"{tmp_path}/o"]
    assert sorted(arguments.words) == sorted(["--users", f"{tmp_path}/u.csv", "--no-filter-viewed", *pairs])
    assert arguments.other_logs == ["a", "s3://b/c"]


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        ("recommend", ["--users", "all"], ["--users", "all"]),
        ("evaluate", ["--checkpoint", "step_000000003"], ["--checkpoint", "step_000000003"]),
        ("evaluate", ["--split", "validation"], ["--split", "validation"]),
        ("run", [], []),
    ],
)
def test_defaults_are_left_out(command: str, words: list[str], expected: list[str]) -> None:
    assert job_arguments(command, words).words == expected


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("run", ["--split", "test"], "No such option: --split.*these commands have it: evaluate"),
        ("evaluate", ["--split", "tests"], "Invalid value for '--split'"),
        ("export", [], "Missing option '--out'"),
        (
            "compare",
            [],
            "cannot be submitted; choose one of run, prepare, train, evaluate, recommend, explain, prune, export",
        ),
    ],
)
def test_a_mistake_is_named_before_anything_is_submitted(command: str, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        job_arguments(command, words)
