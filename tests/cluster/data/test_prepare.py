"""Prepare, from logs to a dataset: equal whatever the tasks, idempotent, and without a trace when it fails."""

import errno
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config.run_config import Config
from cluster.data.prepare import Progress, prepare
from tests.support.prepared import config_at, item_ids, made, refusal, rows_by_user, vocabulary, write_events
from trainer.data.dataset.folder import attempt
from trainer.data.dataset.manifest import read_manifest, verify_dataset
from trainer.data.logs.contract import inspect_inputs
from trainer.data.stream.row_groups import RowGroupReader
from trainer.errors import UserError

pytestmark = pytest.mark.usefixtures("ray_session")

Event = tuple[Any, Any, Any]


def write_log(path: Path, events: list[Event], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    users, items, times = zip(*events, strict=True)
    columns = {"user_id": pa.array(users), "item_id": pa.array(items), "time": pa.array(times)}
    pq.write_table(pa.table(columns), path, **options)


def rows_of(config: Config) -> list[dict[str, Any]]:
    folder, manifest = config.dataset_dir, read_manifest(config.dataset_dir)
    return [row for part in manifest.parts for row in pq.read_table(folder / part.path).to_pylist()]


def histories_of(config: Config) -> dict[Any, list[tuple[Any, int]]]:
    """Return the events of every user: (item as in the logs, time)."""
    vocabulary = [None, *pq.read_table(config.dataset_dir / "vocabulary-000-item.parquet").column("value").to_pylist()]
    return {
        row["user"]: [(vocabulary[item], time) for item, time in zip(row["item"], row["time"], strict=True)]
        for row in rows_of(config)
    }


def random_events(count: int) -> list[Event]:
    choose = random.Random(1)
    return [(f"u{choose.randint(1, 40)}", choose.randint(1, 30), choose.randint(0, 50)) for _ in range(count)]


STEADY = [(user, item, 10 * item) for item in range(1, 6) for user in (1, 2, 3)]


def test_the_dataset_is_the_log_grouped(tmp_path: Path) -> None:
    events = random_events(600)
    bad = [(None, 1, 1), ("u1", None, 1), ("u1", 1, None)]
    write_log(tmp_path / "logs/a.parquet", events[:250])
    write_log(tmp_path / "logs/b/c.parquet", bad + events[250:400])
    (tmp_path / "logs/d.csv").write_text(
        "time,extra,item_id,user_id\n" + "".join(f"{time},x,{item},{user}\n" for user, item, time in events[400:])
    )
    config = config_at(tmp_path)
    progress: list[Progress] = []
    manifest = prepare(config, progress.append)

    kept = list(dict.fromkeys(events))
    expected = {
        user: sorted(((item, time) for u, item, time in kept if u == user), key=lambda event: event[1])
        for user in {user for user, _, _ in kept}
    }
    assert histories_of(config) == expected
    counts = manifest.counts
    assert (counts.rows_read, counts.rows_kept, counts.num_users) == (603, len(kept), len(expected))
    assert counts.rejected == {
        "duplicate": 600 - len(kept), "null item": 1, "null time": 1, "null user": 1,
    }  # fmt: skip
    assert progress[0] == Progress("read", 0, 3, 0)
    assert progress[-1] == Progress("group", 1, 1, len(kept))

    vocabulary = pq.read_table(config.dataset_dir / "vocabulary-000-item.parquet").to_pydict()
    assert vocabulary["value"] == sorted({item for _, item, _ in kept})
    assert sum(vocabulary["num_events"]) == len(kept)
    assert sum(vocabulary["num_train_events"]) == counts.train_events
    rejected = pq.read_table(config.dataset_dir / "rejected-000.parquet").to_pylist()
    assert [(row["file"], row["row"], row["reason"]) for row in rejected[:3]] == [
        (str(tmp_path / "logs/b/c.parquet"), row, f"null {role}") for row, role in enumerate(["user", "item", "time"])
    ]
    assert len(rejected) == sum(counts.rejected.values())
    assert [file["rows"] for file in manifest.source["files"]] == [250, 153, 200]
    assert sorted(p.name for p in config.dataset_dir.iterdir()) == [
        "card.html", "card.json", "manifest.json", "part-000-00000.parquet", "rejected-000.parquet", "vocabulary-000-item.parquet",
    ]  # fmt: skip


def test_a_quarantined_duplicate_can_be_found_in_its_file(tmp_path: Path) -> None:
    moments = [pa.scalar(n, pa.timestamp("s")).as_py() for n in range(6)]
    events: list[Event] = [(1, 10 + n, moments[n]) for n in range(6)]
    write_log(tmp_path / "logs/a.parquet", events)
    write_log(tmp_path / "logs/b.parquet", [(2, 10, moments[0]), events[4], (2, 11, moments[1]), events[2]])
    manifest = made(config_at(tmp_path))
    assert manifest.source["time"]["kind"] == "timestamp"
    rejected = pq.read_table(tmp_path / "dataset/rejected-000.parquet").to_pylist()
    assert [tuple(row.values())[1:] for row in rejected] == [
        (1, "duplicate", "1", "14", "1970-01-01 00:00:04.000000"),
        (3, "duplicate", "1", "12", "1970-01-01 00:00:02.000000"),
    ]
    assert {Path(row["file"]).name for row in rejected} == {"b.parquet"}
    kept = made(config_at(tmp_path, dataset="kept", logs={"duplicates": "keep"}))
    assert (kept.counts.rows_kept, kept.counts.rejected) == (10, {})


def test_tasks_chunks_and_files_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.data.prepare.EVENTS_PER_PARTITION", 200)
    events = random_events(1000)
    write_log(tmp_path / "logs/a.parquet", events)
    one = made(config_at(tmp_path, tasks=1, dataset="one"))
    monkeypatch.setattr("cluster.data.prepare.inspect_inputs", partial(inspect_inputs, rows_per_chunk=130))
    (tmp_path / "logs/a.parquet").unlink()
    write_log(tmp_path / "logs/x.parquet", events[:300], row_group_size=40)
    write_log(tmp_path / "logs/y.parquet", events[300:], row_group_size=7)
    many = made(config_at(tmp_path, tasks=5, dataset="many"))
    assert len(one.parts) == 5
    assert one.parts == many.parts
    assert one.digest == many.digest
    assert one.counts == many.counts


def test_preparing_again_does_nothing_and_notices_damage(tmp_path: Path) -> None:
    write_log(tmp_path / "logs/a.parquet", STEADY)
    config = config_at(tmp_path)
    manifest = made(config)
    before = {path: path.stat().st_mtime_ns for path in config.dataset_dir.iterdir()}
    progress: list[Progress] = []
    again = prepare(config_at(tmp_path, tasks=1, logs={"max_rejected_fraction": 0.5}), progress.append)
    assert again == manifest
    assert progress == []
    assert before == {path: path.stat().st_mtime_ns for path in config.dataset_dir.iterdir()}

    part = config.dataset_dir / manifest.parts[0].path
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert part.name in refusal(config)


def test_a_folder_with_another_dataset_is_refused_with_the_difference(tmp_path: Path) -> None:
    write_log(tmp_path / "logs/a.parquet", STEADY)
    made(config_at(tmp_path))
    assert "min_events" in refusal(config_at(tmp_path, split={"min_events": 4}))
    assert "logs.duplicates: was 'drop'" in refusal(config_at(tmp_path, logs={"duplicates": "keep"}))
    assert "logs.item: was 'item_id'" in refusal(config_at(tmp_path, logs={"item": "time"}))
    write_log(tmp_path / "logs/a.parquet", STEADY[1:])
    assert "a.parquet changed" in refusal(config_at(tmp_path))
    write_log(tmp_path / "logs/b.parquet", STEADY)
    assert "a.parquet changed" in refusal(config_at(tmp_path))  # another new file does not make it an append
    (tmp_path / "logs/a.parquet").unlink()
    write_log(tmp_path / "logs/b.parquet", STEADY[2:])  # with the content of a.parquet it would be that file, renamed
    message = refusal(config_at(tmp_path))
    for part in ("it was made from", "a.parquet", "now leads to", "b.parquet", "run.dataset", "run.dir"):
        assert part in message


@pytest.mark.parametrize("name", ["notes.txt", "part-000-00000.parquet"])
def test_a_folder_in_use_is_refused_and_untouched(tmp_path: Path, name: str) -> None:
    write_log(tmp_path / "logs/a.parquet", STEADY)
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / name).write_text("mine")
    message = refusal(config_at(tmp_path))
    assert "in use" in message
    assert name in message
    assert (tmp_path / "dataset" / name).read_text() == "mine"
    assert "not a folder" in refusal(config_at(tmp_path, dataset="logs/a.parquet"))


def test_files_of_a_killed_attempt_are_removed(tmp_path: Path) -> None:
    write_log(tmp_path / "logs/a.parquet", STEADY)
    folder = tmp_path / "dataset"
    (folder / ".work-dead").mkdir(parents=True)
    for name in (
        ".work-dead/events-00000.arrow",
        "part-000-00007.parquet",
        "rejected-000.parquet",
        ".manifest.json.1.tmp",
        ".card.html.1.tmp",
        "card.json",
    ):
        (folder / name).write_text("half")
    verify_dataset(folder, made(config_at(tmp_path)))
    assert sorted(p.name for p in folder.iterdir()) == [
        "card.html",
        "card.json",
        "manifest.json",
        "part-000-00000.parquet",
        "vocabulary-000-item.parquet",
    ]


def test_an_attempt_excludes_another_and_names_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    with attempt(folder, "a key") as spill:
        with pytest.raises(UserError, match="another command is preparing it"), attempt(folder, "a key"):
            pass
        assert spill.exists()
    with pytest.raises(UserError, match="no space left"):
        fill_the_disk(folder)
    assert not folder.exists()


def fill_the_disk(folder: Path) -> None:
    with attempt(folder, "a key") as spill:
        (spill / "events").touch()
        (folder / "part-000-00000.parquet").touch()
        raise OSError(errno.ENOSPC, "No space left on device")


def test_too_many_rejected_rows_are_refused_with_reasons_and_examples(tmp_path: Path) -> None:
    write_log(tmp_path / "logs/a.parquet", [*STEADY, (None, 1, 1), (1, None, 1), (None, 2, 2)])
    message = refusal(config_at(tmp_path))
    for part in ("3 of 18", "2 null user", "1 null item", "a.parquet row 15 (null user)", "logs.max_rejected_fraction"):
        assert part in message
    assert not (tmp_path / "dataset").exists()
    assert made(config_at(tmp_path, logs={"max_rejected_fraction": 0.5})).counts.rows_kept == 15


def test_duplicates_are_not_among_the_rejected_fraction(tmp_path: Path) -> None:
    write_log(tmp_path / "logs/a.parquet", STEADY * 4)
    assert made(config_at(tmp_path)).counts.rejected == {"duplicate": 45}


def test_an_error_of_a_task_arrives_unchanged_and_leaves_no_files(tmp_path: Path) -> None:
    for name in "abc":
        write_log(tmp_path / f"logs/{name}.parquet", STEADY)
    (tmp_path / "logs/d.csv").write_text("user_id,item_id,time\n" + "1,2,3\n" * 300 + "x,2,3\n")
    (tmp_path / "dataset").mkdir()
    message = refusal(config_at(tmp_path, tasks=2))
    assert "d.csv" in message
    assert "'x'" in message
    assert list((tmp_path / "dataset").iterdir()) == []


def test_a_log_of_one_user_works(tmp_path: Path) -> None:
    write_log(tmp_path / "logs/a.parquet", [("only", n, n) for n in range(4)])
    counts = made(config_at(tmp_path)).counts
    assert (counts.num_users, counts.train_events, counts.validation_targets, counts.test_targets) == (1, 2, 1, 1)


def test_users_with_one_event_stay_but_alone_are_nothing_to_learn_from(tmp_path: Path) -> None:
    lonely = [(user, 1, 1) for user in range(100, 105)]
    write_log(tmp_path / "logs/a.parquet", lonely)
    assert "nothing can be learned" in refusal(config_at(tmp_path))
    assert not (tmp_path / "dataset").exists()
    write_log(tmp_path / "logs/b.parquet", STEADY)
    counts = made(config_at(tmp_path)).counts
    assert (counts.num_users, counts.users_without_targets, counts.users_not_evaluated) == (8, 5, 5)


def test_a_time_split_knows_no_item_of_the_future(tmp_path: Path) -> None:
    write_log(tmp_path / "logs/a.parquet", STEADY)
    split = {"kind": "global_time", "validation_time": 30, "test_time": 50}
    config = config_at(tmp_path, split=split)
    counts = made(config).counts
    assert (counts.num_items, counts.unknown_items) == (2, 9)
    assert (counts.train_events, counts.validation_targets, counts.test_targets) == (6, 6, 3)
    assert rows_of(config)[0] == {
        "user": 1, "item": [1, 2, 3, 4, 5], "time": [10, 20, 30, 40, 50], "train_end": 2, "validation_end": 4,
    }  # fmt: skip
    assert pq.read_table(config.dataset_dir / "vocabulary-000-item.parquet").to_pydict() == {
        "value": [1, 2, 3, 4, 5], "id": [1, 2, 0, 0, 0], "num_events": [3] * 5, "num_train_events": [3, 3, 0, 0, 0],
    }  # fmt: skip
    reader = RowGroupReader(config.dataset_dir, read_manifest(config.dataset_dir))
    assert reader.read([0])[0].items.tolist() == [1, 2, 0, 0, 0]
    message = refusal(config_at(tmp_path, dataset="early", split={**split, "validation_time": 5}))
    assert "split.validation_time" in message
    assert "from 10 to 50" in message
    late = made(config_at(tmp_path, dataset="late", split={**split, "validation_time": 98, "test_time": 99}))
    assert (late.counts.validation_targets, late.counts.test_targets) == (0, 0)


def test_movielens_has_the_numbers_of_the_papers(tmp_path: Path, shared_data: Path) -> None:
    logs = {"path": str(shared_data / "ml-1m/events_3416_items.parquet"), "time": "position"}
    config = config_at(tmp_path, logs=logs)
    manifest = made(config)
    counts = manifest.counts
    assert (counts.num_users, counts.num_items, counts.rows_read, counts.rows_kept) == (6040, 3416, 999_611, 999_611)
    assert (counts.validation_targets, counts.test_targets, counts.tied_times) == (6040, 6040, 0)
    assert sum(len(part.row_groups) for part in manifest.parts) >= 64
    assert json.loads((config.dataset_dir / "manifest.json").read_text())["counts"]["num_users"] == 6040


def test_nothing_is_trained_on_users_that_are_held_out(tmp_path: Path) -> None:
    """Items, values and fits of these users alone are unknown to the training part; their last events are targets."""
    events = [
        (f"u{user}", f"i{user % 7}" if place else f"own-{user}", 10 * place + user, f"c{user}", float(user))
        for user in range(60)
        for place in range(5)
    ]
    write_events(tmp_path / "logs/a.parquet", events, "colour", "price")
    features = {"colour": {"kind": "categorical"}, "price": {"kind": "numeric"}}
    split = {"kind": "user_holdout", "test_share": 0.2, "validation_share": 0.3, "num_targets": 2}
    config = config_at(tmp_path, split=split, logs={"features": features})
    manifest = made(config)
    rows = rows_by_user(config)
    trained = {user for user, row in rows.items() if row.train_end}
    tested = {user for user, row in rows.items() if row.validation_end < len(row.events)}
    validated = set(rows) - trained - tested
    assert min(len(trained), len(tested), len(validated)) > 5
    assert all(rows[user].train_end == rows[user].validation_end == 5 for user in trained)
    assert all((rows[user].train_end, rows[user].validation_end) == (0, 3) for user in tested)
    assert all((rows[user].train_end, rows[user].validation_end) == (0, 5) for user in validated)
    known = {item for item, number in item_ids(config).items() if number}
    assert {item for item in known if item.startswith("own-")} == {f"own-{user[1:]}" for user in trained}
    assert set(vocabulary(config, "colour")[1:]) == {f"c{user[1:]}" for user in trained}
    price = next(feature for feature in manifest.features if feature.name == "price")
    assert price.fitted is not None
    assert price.fitted["mean"] == pytest.approx(sum(int(user[1:]) for user in trained) / len(trained))
    counts = manifest.counts
    assert (counts.train_events, counts.validation_targets, counts.test_targets) == (
        5 * len(trained),
        2 * len(validated),
        2 * len(tested),
    )
