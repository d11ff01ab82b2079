"""New logs prepared with the vocabularies of an existing dataset: nothing of them changes, unknown values are counted."""

import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.config.run_config import Config
from cluster.data.prepare_with import prepare_with
from tests.support.prepared import config_at, item_ids, made, rows_by_user, vocabulary, write_events, write_table
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.data.prepare.derived import Derivation
from trainer.errors import UserError
from trainer.storage.files import hash_file

pytestmark = pytest.mark.usefixtures("ray_session")

NAMES = ("click", "color", "brand", "price")
TABLES = {"hashed": {"ids": {"kind": "hash", "num_rows": 4}}, "raw": {"ids": {"kind": "dynamic", "num_rows": 9}}}
SPLIT = {"kind": "global_time", "validation_time": 80, "test_time": 90}


def events_of(seed: int, users: range, items: range, times: range, num: int = 200) -> list[tuple[Any, ...]]:
    choose = random.Random(seed)
    return [
        (
            f"u{choose.choice(users)}",
            f"i{choose.choice(items)}",
            choose.choice(times),
            float(choose.random() < 0.5),
            choose.choice(["red", "green", None] if times[0] == 0 else ["red", "pink", None]),
            choose.randint(0, 5) + times[0],
            choose.choice([None, 2.0, float(choose.randint(0, 9) + times[0])]),
        )
        for _ in range(num)
    ]


def logs_config(ranking: bool, with_items: bool = True) -> dict[str, Any]:
    features = {
        "color": {"kind": "categorical"},
        "brand": {"kind": "categorical", "table": "hashed"},
        "raw": {"kind": "categorical", "column": "brand"},
        "price": {"kind": "numeric"},
    }
    settings: dict[str, Any] = {"features": features}
    if ranking:
        settings |= {"labels": ["click"], "history_label": "click"}
    if with_items:
        size = {"size": {"kind": "numeric", "buckets": 3}, "tags": {"kind": "categorical", "separator": "|"}}
        settings["items"] = {"features": size}
    return settings


def base_and_config(tmp_path: Path, ranking: bool) -> tuple[Config, Config]:
    """Return the config of a prepared base, and that of later logs with new users, items and values."""
    write_events(tmp_path / "logs/old.parquet", events_of(1, range(30), range(20), range(100)), *NAMES)
    write_events(tmp_path / "later/new.parquet", events_of(2, range(20, 40), range(10, 26), range(100, 150)), *NAMES)
    rows = {"item_id": [f"i{n}" for n in range(24)], "size": [float(n) for n in range(24)], "tags": ["a|b", "c"] * 12}
    write_table(tmp_path / "items.parquet", rows)
    settings = logs_config(ranking)
    settings["items"]["path"] = str(tmp_path / "items.parquet")
    base = config_at(tmp_path, tasks=2, split=SPLIT, logs=settings, tables=TABLES)
    made(base)
    logs = {**settings, "path": str(tmp_path / "later")}
    return base, config_at(tmp_path, dataset="derived", tasks=2, split=SPLIT, logs=logs, tables=TABLES)


def derive(base: Config, config: Config, **options: Any) -> Manifest:
    names = ("history", "targets")
    derivation = Derivation(**{name: options.pop(name) for name in names if name in options})
    return prepare_with(base.dataset_dir, config, config.dataset_dir, derivation, lambda _: None, **options)


@pytest.mark.parametrize("ranking", [False, True])
def test_history_is_that_of_the_base_and_targets_are_the_new_events(tmp_path: Path, ranking: bool) -> None:
    base, config = base_and_config(tmp_path, ranking)
    before = {path.name: hash_file(path) for path in base.dataset_dir.iterdir()}
    old = read_manifest(base.dataset_dir)
    manifest = derive(base, config)
    assert {path.name: hash_file(path) for path in base.dataset_dir.iterdir()} == before
    known, rows = rows_by_user(base), rows_by_user(config)
    new: dict[str, list[tuple[Any, ...]]] = {}
    seen = set()
    for event in sorted(events_of(2, range(20, 40), range(10, 26), range(100, 150)), key=lambda event: event[2]):
        if event[:3] not in seen:
            seen.add(event[:3])
            new.setdefault(event[0], []).append(event)
    assert set(rows) == set(known) | set(new)
    for user, row in rows.items():
        own = new.get(user, [])
        past = known[user].history if user in known else []
        clicked = [(e[1], e[2]) for e in own if e[3] or not ranking]
        assert row.history == past + clicked
        targets = row.impressions if ranking else row.events
        old_targets = (known[user].impressions if ranking else known[user].events) if user in known else []
        assert row.train_end == (known[user].train_end if user in known else 0)
        assert row.validation_end == len(old_targets) == len(targets) - len(own)
    assert manifest.counts.test_targets == sum(map(len, new.values())) == manifest.derived["events"]
    ids = item_ids(config)
    unknown = [event for own in new.values() for event in own if not ids[event[1]]]
    assert manifest.derived["unknown_item_events"] == len(unknown) > 0
    assert manifest.derived["unknown_items"] == len({event[1] for event in unknown})
    assert manifest.derived["new_users"] == len(set(new) - set(known)) > 0
    assert manifest.grown_from == (old.digest,)


@pytest.mark.parametrize("ranking", [False, True])
@pytest.mark.parametrize("history", [False, True])
def test_nothing_of_vocabularies_encoders_and_fits_changes(tmp_path: Path, ranking: bool, history: bool) -> None:
    base, config = base_and_config(tmp_path, ranking)
    old, manifest = read_manifest(base.dataset_dir), derive(base, config, history=history)
    ids, known = item_ids(config), item_ids(base)
    assert {item: ids[item] for item in known} == known
    assert all(ids[item] == 0 for item in set(ids) - set(known))
    assert vocabulary(config)[: len(known) + 1] == vocabulary(base)
    assert vocabulary(config, "color") == vocabulary(base, "color")
    assert manifest.counts.num_items == old.counts.num_items
    for mine, its in zip(manifest.features, old.features, strict=True):
        assert (mine.column, mine.num_rows, mine.fitted) == (its.column, its.num_rows, its.fitted)
    color = next(feature for feature in manifest.features if feature.name == "color")
    assert color.num_unknown > 0  # pink
    counted, trained = (read_vocabulary(c.dataset_dir, m) for c, m in ((config, manifest), (base, old)))
    assert counted.train_events.tolist() == trained.train_events.tolist()


def test_events_can_be_history_without_targets_or_without_the_base(tmp_path: Path) -> None:
    base, config = base_and_config(tmp_path, ranking=False)
    manifest = derive(base, config, history=False, targets=False)
    rows = rows_by_user(config)
    assert set(rows) <= {f"u{n}" for n in range(20, 40)}
    assert all(time >= 100 for row in rows.values() for _, time in row.history)
    assert all(row.validation_end == len(row.events) and row.train_end == 0 for row in rows.values())
    assert manifest.counts.test_targets == 0
    assert manifest.derived["new_users"] is None


def test_items_keep_their_features_if_the_catalogue_is_not_read(tmp_path: Path) -> None:
    base, config = base_and_config(tmp_path, ranking=False)
    read = derive(base, config)
    path = config.dataset_dir / read.items.path if read.items else tmp_path
    with_catalogue = pq.read_table(path).to_pylist()
    (tmp_path / "items.parquet").unlink()
    kept = derive(base, config, read_catalogue=False)
    assert kept.items is not None
    old = read_manifest(base.dataset_dir)
    assert old.items is not None
    before = pq.read_table(base.dataset_dir / old.items.path).to_pylist()
    now = pq.read_table(config.dataset_dir / kept.items.path).to_pylist()
    assert str(now[: len(before)]) == str(before)
    assert len(now) == len(with_catalogue) > len(before)
    assert {tuple(row["item.tags"]) for row in now[len(before) :]} == {()}


def test_a_finished_one_is_found_again_an_interrupted_one_continued_and_an_outdated_one_replaced(
    tmp_path: Path,
) -> None:
    base, config = base_and_config(tmp_path, ranking=False)

    def interrupt(progress: Any) -> None:
        if progress.stage == "group":
            raise RuntimeError("stop")

    derivation = Derivation()
    with pytest.raises(RuntimeError):
        prepare_with(base.dataset_dir, config, config.dataset_dir, derivation, interrupt)
    seen: list[Any] = []
    first = prepare_with(base.dataset_dir, config, config.dataset_dir, derivation, seen.append)
    assert seen[0].done == seen[0].total  # the first pass was not repeated
    again = prepare_with(base.dataset_dir, config, config.dataset_dir, derivation, pytest.fail, connect=pytest.fail)
    assert again.digest == first.digest
    write_events(tmp_path / "later/newer.parquet", [("u1", "i1", 170, 1.0, "red", 1, 1.0)], *NAMES)
    replaced = derive(base, config)
    assert replaced.derived["events"] == first.derived["events"] + 1
    assert not list(config.dataset_dir.glob(".*"))
    listed = {file.path for file in replaced.files}
    assert {path.name for path in config.dataset_dir.glob("*.parquet")} - listed <= {"rejected-001.parquet"}


def test_logs_of_other_columns_are_read_and_of_other_features_refused(tmp_path: Path) -> None:
    base, config = base_and_config(tmp_path, ranking=False)
    events = pq.read_table(tmp_path / "later/new.parquet").rename_columns(["who", "what", "when", *NAMES])
    pq.write_table(events, tmp_path / "later/new.parquet")
    logs = config.logs.model_copy(update={"user": "who", "item": "what", "time": "when"})
    other = config.model_copy(update={"logs": logs})
    assert derive(base, other).derived["events"] > 0
    features = {**logs.features, "price": logs.features["price"].model_copy(update={"transform": "log1p"})}
    logs = logs.model_copy(update={"features": features})
    with pytest.raises(UserError, match=r"logs\.features\.price\.transform: was 'none', is 'log1p'"):
        derive(base, config.model_copy(update={"logs": logs}))


def test_late_events_are_rejected(tmp_path: Path) -> None:
    base, config = base_and_config(tmp_path, ranking=False)
    write_events(tmp_path / "later/new.parquet", [("u1", "i1", 0, 1.0, "red", 1, 1.0)] * 1, *NAMES)
    with pytest.raises(UserError, match="late"):
        derive(base, config)
    assert not (config.dataset_dir / "manifest.json").exists()
