"""Data cards of special datasets: empty splits, short histories, rejected rows, added days, a missing profile."""

from pathlib import Path

import pytest

from tests.support.datasets import tiny_dataset
from tests.support.html_page import Page, assert_loads_nothing
from tests.trainer.data.dataset.test_card import (
    GLOBAL_TIME,
    assert_counted,
    assert_overlap,
    by_time,
    checks_in,
    config_at,
    made,
    random_rows,
    split_of,
    write_log,
)
from trainer.data.dataset import card
from trainer.data.dataset.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("ray_session")


def test_empty_splits_are_stated_on_the_card(tmp_path: Path) -> None:
    write_log(tmp_path / "logs/a.parquet", random_rows(200))
    split = {"kind": "global_time", "validation_time": 1000, "test_time": 2000}
    _, values, page = made(config_at(tmp_path, split=split))
    checks = checks_in(values)
    assert checks["empty_splits"].verdict == "look"
    assert checks["empty_splits"].found == "validation and test: no targets"
    assert [check.name for check in checks.values() if check.verdict == "problem"] == []
    for name in ("repeated_test_targets", "test_users_without_training", "unknown_test_targets"):
        assert checks[name].value is None
        assert "there are no test" in checks[name].found
    assert values["by_split"]["test"] == {"events": 0, "users": 0, "items": 0, "first": None, "last": None}
    assert Page(page).open == []


def test_a_dataset_of_short_histories_has_a_card(tmp_path: Path) -> None:
    """Nobody is evaluated, and all events share one time."""
    write_log(tmp_path / "logs/a.parquet", [{"user_id": n // 2, "item_id": n % 2, "time": 7} for n in range(6)])
    _, values, page = made(config_at(tmp_path))
    assert checks_in(values)["training_after_test"].found == "there are no test events"
    assert checks_in(values)["outlying_times"].verdict == "ok"
    assert Page(page).open == []


def test_quarantined_rows_are_shown_and_names_of_others_are_escaped(tmp_path: Path) -> None:
    nasty, other = "<script>alert('x')</script>", "a&b $\\frac$ <i>"
    rows = [{"user_id": f"u{n % 9}<b>", "item_id": f"i{n % 13}", "time": n, nasty: n % 2} for n in range(200)]
    rows += [{"user_id": None, "item_id": f"<u>{n}", "time": n, nasty: 0} for n in range(12)]
    rows = [row | {other: row["time"] % 3 == 0} for row in rows]
    name = "a&b<img src=x>.parquet"
    write_log(tmp_path / "logs" / name, rows)
    logs = {"labels": [nasty, other], "history_label": nasty, "outcomes": ["<s>"]}
    split = {"kind": "global_time", "validation_time": 100, "test_time": 150}
    manifest, values, page = made(config_at(tmp_path, logs, split=split))
    parsed = Page(page)
    assert parsed.open == []
    assert not {"script", "img", "i", "s", "u"} & set(parsed.names)
    assert_loads_nothing(page)
    for text in (nasty, other, name, "<u>9", "null user"):
        assert text in parsed.text
    assert "<u>10" not in parsed.text  # the first ten only
    assert values["rejected"]["null user"]["rows"] == 12
    assert list(manifest.labels["positives"]) == sorted([nasty, other])


def test_an_append_has_a_new_card_and_files_by_generation(tmp_path: Path) -> None:
    rows = random_rows(300)
    write_log(tmp_path / "logs/a.parquet", [row for row in rows if row["time"] < 260])
    first, values, _ = made(config_at(tmp_path, split=GLOBAL_TIME))
    write_log(tmp_path / "logs/b.parquet", [row for row in rows if row["time"] >= 260])
    second, values, page = made(config_at(tmp_path, split=GLOBAL_TIME))
    assert values["generation"] == 1
    assert values["digest"] == second.digest != first.digest
    assert_counted(values, split_of(rows, by_time))
    assert_overlap(values, split_of(rows, by_time))
    assert "b.parquet" in Page(page).text
    folder = tmp_path / "dataset"
    assert card.read_checks(folder, second) == tuple(checks_in(values).values())
    assert card.read_checks(folder, first) is None  # a card of other content is none


def test_unreadable_files_are_named_with_their_cause(tmp_path: Path) -> None:
    write_log(tmp_path / "logs/a.parquet", random_rows(200))
    (tmp_path / "logs/b.parquet").write_bytes(b"no parquet <at> all")
    _, values, page = made(config_at(tmp_path, {"max_unreadable_files": 1}))
    check = checks_in(values)["unreadable_files"]
    assert (check.verdict, check.value) == ("look", 1)
    assert "b.parquet" in Page(page).text
    assert "Left out" in Page(page).text


def test_a_missing_card_is_written_when_the_dataset_is_asked_for_again(tmp_path: Path) -> None:
    write_log(tmp_path / "logs/a.parquet", random_rows(100))
    config = config_at(tmp_path)
    manifest, values, page = made(config)
    for name in ("card.html", "card.json"):
        (tmp_path / "dataset" / name).unlink()
        assert card.read_checks(tmp_path / "dataset", manifest) is None
        assert made(config) == (manifest, values, page)  # bytes and all


def test_a_dataset_without_profile_has_a_card(tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path)
    card.write(tmp_path, manifest)
    assert card.read_checks(tmp_path, read_manifest(tmp_path)) is not None
