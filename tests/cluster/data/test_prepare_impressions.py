"""Datasets for ranking: impressions joined point in time to the histories before them, against brute force, and KuaiRand."""

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cluster.config.run_config import check_config, load_config
from cluster.data.prepare import prepare
from tests.support.prepared import (
    config_at,
    item_ids,
    made,
    refusal,
    rejected_rows,
    rows_by_user,
    vocabulary,
    write_events,
)
from trainer.data.dataset.manifest import read_manifest
from trainer.data.public_sets.sets import convert
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.errors import UserError

pytestmark = pytest.mark.usefixtures("ray_session")

Impression = tuple[Any, int, int, float, float, str | None]
Event = tuple[Any, int, int]
TIMES = {"kind": "global_time", "validation_time": 25, "test_time": 35}
CONTEXT = {"page": {"kind": "categorical"}, "pages": {"kind": "categorical", "column": "page", "separator": "/"}}


def random_impressions(seed: int, count: int = 400) -> list[Impression]:
    """Return many ties, some duplicates; labels of which one is a number."""
    choose = random.Random(seed)
    return [
        (
            f"u{choose.randint(1, 25)}",
            choose.randint(1, 12),
            choose.randint(0, 40),
            float(choose.random() < 0.4),
            choose.choice([0.0, -1.0, 2.5]),
            choose.choice(["top", "top/left", "right", None]),
        )
        for _ in range(count)
    ]


def random_history(seed: int, count: int = 200) -> list[Event]:
    """Return the log; users and items may have no impressions, and events may follow the last impression."""
    choose = random.Random(seed)
    return [(f"u{choose.randint(10, 40)}", choose.randint(5, 20), choose.randint(-10, 60)) for _ in range(count)]


def plain_histories(shown: list[Impression], past: list[Event], label: int | None) -> dict[Any, list[tuple[int, int]]]:
    """Return (item, time) of each user's history, oldest first: events of the source before impressions of the same time."""
    events = [*past, *((i[0], i[1], i[2]) for i in shown if label is not None and i[label] > 0)]
    kept = list(dict.fromkeys(events))
    return {
        user: [(item, time) for u, item, time in sorted(kept, key=lambda e: e[2]) if u == user] for user, _, _ in kept
    }


def first_of_each(rows: list[Any]) -> list[Any]:
    """Return the rows without repetitions of user, item and time."""
    return list({row[:3]: row for row in reversed(rows)}.values())[::-1]


@pytest.mark.parametrize("split", [{"kind": "leave_one_out"}, TIMES], ids=["leave_one_out", "global_time"])
@pytest.mark.parametrize("sources", ["label", "history", "both"])
@pytest.mark.parametrize("seed", [1, 2])
def test_impressions_see_exactly_the_earlier_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, sources: str, split: dict[str, Any]
) -> None:
    monkeypatch.setattr("cluster.data.prepare.EVENTS_PER_PARTITION", 200)
    rows, past = random_impressions(seed), random_history(seed) if sources != "label" else []
    write_events(tmp_path / "logs/a.parquet", rows[:150], "click", "seconds", "page", row_group_size=40)
    write_events(tmp_path / "logs/b.parquet", rows[150:], "click", "seconds", "page")
    logs: dict[str, Any] = {"labels": ["click", "seconds"], "features": CONTEXT, "negative_sampling_rate": 0.25}
    if past:
        write_events(tmp_path / "history.parquet", past)
        logs["history"] = {"path": str(tmp_path / "history.parquet")}
    if sources != "history":
        logs["history_label"] = "click"
    config = config_at(tmp_path, logs=logs, split=split)
    manifest = made(config)
    assert manifest.task == "ranking"
    assert len(manifest.parts) > 1

    shown = [first_of_each([r for r in rows if r[0] == user]) for user in {r[0] for r in rows}]
    histories = plain_histories([i for user in shown for i in user], past, 3 if sources != "history" else None)
    pages = {name: {value: k for k, value in enumerate(vocabulary(config, name))} for name in CONTEXT}
    actual = rows_by_user(config)
    assert set(actual) == {r[0] for r in rows} | set(histories)
    positives = {name: Counter[int]() for name in ("click", "seconds")}
    targets = Counter[int]()
    for user, row in actual.items():
        history = histories.get(user, [])
        assert row.history == history
        impressions = sorted((i for u in shown for i in u if i[0] == user), key=lambda i: i[2])
        assert [(i[0], i[1], i[2], i[3]) for i in row.impressions] == [
            (i[1], i[2], sum(time < i[2] for _, time in history), {"click": i[3], "seconds": i[4]}) for i in impressions
        ]
        assert [i[4] for i in row.impressions] == [page_features(i[5], pages) for i in impressions]
        of_source = {(item, time) for u, item, time in past if u == user}
        for item, time, features in row.events:
            assert isinstance(features["pages"], list)
            if (item, time) in of_source:
                assert features == {"page": 0, "pages": []}
        expected = cuts_of([i[2] for i in impressions], split)
        assert (row.train_end, row.validation_end) == expected
        for place, impression in enumerate(impressions):
            part = (place >= expected[0]) + (place >= expected[1])
            targets[part] += 1
            for name, value in (("click", impression[3]), ("seconds", impression[4])):
                positives[name][part] += value > 0

    counts = manifest.counts
    dropped = len(rows) - sum(map(len, shown)) + len(past) - len(set(past))
    assert (counts.rows_read, counts.rejected) == (len(rows) + len(past), {"duplicate": dropped})
    assert counts.rows_kept == counts.rows_read - dropped
    assert (counts.train_events, counts.validation_targets, counts.test_targets) == (targets[0], targets[1], targets[2])
    assert counts.history_events == sum(map(len, histories.values()))
    assert manifest.labels["negative_sampling_rate"] == 0.25
    assert manifest.labels["positives"] == {
        name: {part: positives[name][k] for k, part in enumerate(("train", "validation", "test"))} for name in positives
    }
    everything = [impression for user in shown for impression in user]
    assert {item for item, id in item_ids(config).items() if id} == known_items(everything, histories, split)


def page_features(page: str | None, ids: dict[str, dict[Any, int]]) -> dict[str, Any]:
    """Return the features of the page of an impression."""
    return {"page": ids["page"].get(page, 0), "pages": [ids["pages"][part] for part in (page or "").split("/") if part]}


def known_items(
    impressions: list[tuple[Any, ...]], histories: dict[Any, list[tuple[Any, int]]], split: dict[str, Any]
) -> set[Any]:
    """Return the items that training impressions or the histories before them have."""
    end = 25 if split is TIMES else math.inf
    shown = {impression[1] for impression in impressions if impression[2] < end}
    return shown | {item for history in histories.values() for item, time in history if time < end}


def cuts_of(times: list[int], split: dict[str, Any]) -> tuple[int, int]:
    if split is TIMES:
        return sum(time < 25 for time in times), sum(time < 35 for time in times)
    held_out = len(times) >= 3
    return len(times) - 2 * held_out, len(times) - held_out


def test_users_without_impressions_or_without_histories_have_empty_ones(tmp_path: Path) -> None:
    write_events(tmp_path / "logs/a.parquet", [("b", 1, 5, 0.0), ("b", 2, 30, 1.0), ("d", 1, 40, 1.0)], "click")
    write_events(tmp_path / "history.parquet", [("a", 1, 1), ("c", 2, 2), ("e", 3, 3), ("e", 4, 90)])
    logs = {"labels": ["click"], "history": {"path": str(tmp_path / "history.parquet")}}
    config = config_at(tmp_path, logs=logs, split=TIMES)
    manifest = made(config)
    rows = rows_by_user(config)
    assert {user: (len(r.events), len(r.impressions), r.train_end, r.validation_end) for user, r in rows.items()} == {
        "a": (1, 0, 0, 0), "b": (0, 2, 1, 2), "c": (1, 0, 0, 0), "d": (0, 1, 0, 0), "e": (2, 0, 0, 0),
    }  # fmt: skip
    counts = manifest.counts
    assert (counts.num_users, counts.users_without_targets, counts.rows_kept) == (5, 4, 7)
    assert manifest.profile["test_users_without_training"] == 1


def test_labels_that_are_missing_or_no_numbers_are_bad_rows(tmp_path: Path) -> None:
    rows = [("u", n, n, 1.0, n % 2) for n in range(60)]
    bad = [("u", 99, 99, None, 1), ("u", 98, 98, math.nan, 1), ("u", 97, 97, math.inf, 1), ("v", 96, 96, 0.0, None)]
    write_events(tmp_path / "logs/a.parquet", [*rows[:30], *bad, *rows[30:]], "click", "like")
    config = config_at(tmp_path, logs={"labels": ["click", "like"], "history_label": "click"})
    message = refusal(config)
    for part in ("4 of 64", "3 null click", "1 null like", "a.parquet row 30 (null click)", "max_rejected_fraction"):
        assert part in message
    assert not config.dataset_dir.exists()
    config = config_at(
        tmp_path, logs={"labels": ["click", "like"], "history_label": "click", "max_rejected_fraction": 0.1}
    )
    assert made(config).counts.rejected == {"null click": 3, "null like": 1}
    assert rejected_rows(config) == [
        ("a.parquet", 30 + k, reason) for k, reason in enumerate(["null click"] * 3 + ["null like"])
    ]


def test_a_time_split_cuts_impressions_and_knows_no_item_of_the_future(tmp_path: Path) -> None:
    rows = [("u", n, n, float(n % 2)) for n in range(50)]
    write_events(tmp_path / "logs/a.parquet", rows, "click")
    config = config_at(tmp_path, logs={"labels": ["click"], "history_label": "click"}, split=TIMES)
    counts = made(config).counts
    assert (counts.train_events, counts.validation_targets, counts.test_targets) == (25, 10, 15)
    assert (counts.num_items, counts.unknown_items, counts.rare_items) == (25, 25, 0)
    manifest = read_manifest(config.dataset_dir)
    reader = RowGroupReader(config.dataset_dir, manifest, ColumnSelection(impressions=True))
    shown = reader.read([0])[0].impressions
    assert shown is not None
    assert shown.items.tolist() == [*range(1, 26), *[0] * 25]


@pytest.mark.parametrize(
    ("logs", "words"),
    [
        ({"features": {"f": {"kind": "numeric", "column": "click"}}}, ["logs.features.f", "'click'", "logs.labels"]),
        ({"features": {"seconds": {"kind": "numeric"}}}, ["logs.features.seconds", "'seconds'", "logs.outcomes"]),
        ({"items": {"path": "x", "features": {"seconds": {"kind": "numeric"}}}}, ["logs.items.features.seconds", "'seconds'"]),
        ({"users": {"path": "x", "features": {"f": {"kind": "numeric", "column": "click"}}}}, ["logs.users.features.f", "'click'"]),
        ({"history_label": "like"}, ["logs.history_label = 'like'", "logs.labels"]),
        ({"history_label": None}, ["logs.labels", "logs.history_label", "logs.history"]),
        ({"labels": []}, ["logs.history_label", "logs.labels"]),
    ],
)  # fmt: skip
def test_columns_that_know_the_answer_are_refused(logs: dict[str, Any], words: list[str]) -> None:
    given = {"path": "x", "labels": ["click"], "outcomes": ["seconds"], "history_label": "click", **logs}
    with pytest.raises(UserError) as caught:
        check_config({"logs": given}, "test")
    for word in words:
        assert word in str(caught.value)


def test_a_label_in_another_file_is_missed_by_name(tmp_path: Path) -> None:
    write_events(tmp_path / "logs/a.parquet", [("u", n, n, 1.0) for n in range(9)], "click")
    write_events(tmp_path / "logs/b.parquet", [("u", n, n, 1.0) for n in range(9)], "clicked")
    message = refusal(config_at(tmp_path, logs={"labels": ["click"], "history_label": "click"}))
    for part in ("b.parquet", '"click"', '"clicked"', "logs.labels"):
        assert part in message


# KuaiRand, as far as it is available: two periods of impressions, and what users watched before

OUTCOMES = {
    "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter", "play_time_ms", "profile_stay_time",
    "comment_stay_time",
}  # fmt: skip


def test_kuairand_end_to_end(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Path(__file__).parents[3] / "configs/kuairand.toml"
    folder = tmp_path / "logs/kuairand-valtest"
    convert("kuairand-valtest", shared_data / "kuairand-pure-valtest", folder, lambda *_: None)
    monkeypatch.chdir(tmp_path)
    config = load_config(recipe, [f"run.dir={tmp_path / 'run'}"])
    assert config.logs.labels == ["is_click", "long_view", "is_like"]
    assert set(config.logs.outcomes) == OUTCOMES
    manifest = prepare(config, lambda _: None)

    shown = [pq.read_table(folder / f"impressions-{part}.parquet") for part in ("val", "test")]
    assert [table.num_rows for table in shown] == [94_784, 133_545]
    past = pq.read_table(folder / "history.parquet")
    counts = manifest.counts
    assert counts.rows_read == 94_784 + 133_545 + past.num_rows
    assert counts.rows_read == counts.rows_kept + sum(counts.rejected.values())
    targets = counts.train_events + counts.validation_targets + counts.test_targets
    everything = pa.concat_tables(shown)
    # an item shown again in the same millisecond is another impression: 5,885 rows of these files
    assert targets == everything.num_rows == 228_329
    assert {name: sum(value.values()) for name, value in manifest.labels["positives"].items()} == {
        name: pc.sum(everything.column(name)).as_py() for name in config.logs.labels
    }
    assert counts.history_events == past.num_rows + pc.sum(everything.column("is_click")).as_py()
    check_point_in_time(config.dataset_dir, targets)
    columns = {name for part in manifest.parts for name in pq.read_schema(config.dataset_dir / part.path).names}
    columns |= set(pq.read_schema(config.dataset_dir / manifest.items.path).names) if manifest.items else set()
    assert not {column.rpartition(".")[2] for column in columns} & OUTCOMES
    assert {column for column in columns if column.startswith("label.")} == {f"label.{n}" for n in config.logs.labels}


def check_point_in_time(folder: Path, targets: int) -> None:
    """Check every impression: the last event before its history's end is earlier, and the next one is not."""
    manifest = read_manifest(folder)
    reader = RowGroupReader(folder, manifest, ColumnSelection(times=True, impressions=True))
    seen = 0
    for group in range(len(reader.group_rows)):
        held = reader.read([group])[group]
        shown = held.impressions
        assert shown is not None
        assert held.times is not None
        seen += shown.items.size
        for row in range(reader.group_rows[group]):
            times = held.times[held.starts[row] : held.ends[row]]
            own = slice(shown.starts[row], shown.ends[row])
            assert (times[1:] >= times[:-1]).all()
            assert (times.searchsorted(shown.times[own], side="left") == shown.history_end[own]).all()
    assert seen == targets
