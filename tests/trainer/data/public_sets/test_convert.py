"""What all conversions have in common: names, the output folder, and that the logs are ones that Shoal reads."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.data.public_sets.originals import MOVIELENS_CSV, rows, write_files
from trainer.data.logs.config import LogsConfig
from trainer.data.logs.contract import find_inputs, inspect_inputs
from trainer.data.logs.reading import Rules, read_chunk
from trainer.data.public_sets import output
from trainer.data.public_sets.sets import SETS, convert
from trainer.errors import UserError

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def movielens(tmp_path: Path) -> Path:
    return write_files(tmp_path / "ml-20m", MOVIELENS_CSV)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_the_logs_pass_the_checks_of_prepare(movielens: Path, tmp_path: Path) -> None:
    convert("movielens-20m", movielens, tmp_path / "logs")
    logs = LogsConfig(path=str(tmp_path / "logs" / "events-*.parquet"))  # the columns have the default names
    inputs = inspect_inputs(find_inputs(logs), logs)
    (block,) = [block for chunk in inputs.chunks for block in read_chunk(chunk, inputs.contracts["logs"], Rules())]
    assert block.rejected.num_rows == 0
    assert block.events.to_pydict() == {
        "user": [1, 1, 2],
        "item": [2, 29, 2],
        "time": [1112486027, 1112484676, 1112486027],
        "row": [0, 1, 2],
    }


def test_an_unknown_name_lists_the_sets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean movielens-1m\? the sets are movielens-100k, .*, yambda$"):
        convert("movielens1m", tmp_path, tmp_path / "logs")


@pytest.mark.parametrize("name", SETS)
def test_every_set_names_the_files_that_an_empty_folder_lacks(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"{name}: .*empty: the folder has n.*; it must hold .*docs/public_sets\.md"):
        convert(name, tmp_path / "empty", tmp_path / "logs")
    with pytest.raises(UserError, match=rf"{name}: .*nowhere: .*; it must hold "):
        convert(name, tmp_path / "nowhere", tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_the_record_names_inputs_and_outputs(movielens: Path, tmp_path: Path) -> None:
    convert("movielens-20m", movielens, tmp_path / "logs")
    record = json.loads((tmp_path / "logs" / "conversion.json").read_text())
    assert record["set_name"] == "movielens-20m"
    assert record["source"] == {name: (movielens / name).stat().st_size for name in ("movies.csv", "ratings.csv")}
    assert record["rows"] == {"events": 3, "items": 3}
    assert set(record["files"]) | {"conversion.json"} == {path.name for path in (tmp_path / "logs").iterdir()}


def test_a_finished_folder_is_kept_even_without_the_source(movielens: Path, tmp_path: Path) -> None:
    done = convert("movielens-20m", movielens, tmp_path / "logs")
    before = snapshot(tmp_path / "logs")
    assert convert("movielens-20m", movielens, tmp_path / "logs") == done
    movielens.rename(tmp_path / "elsewhere")
    assert convert("movielens-20m", movielens, tmp_path / "logs") == done
    assert snapshot(tmp_path / "logs") == before


def test_a_folder_of_something_else_is_refused(movielens: Path, tmp_path: Path) -> None:
    mine = write_files(tmp_path / "mine", {"events-00000.parquet": "precious"})
    with pytest.raises(UserError, match=r"in use by something else \(it holds events-00000\.parquet\)"):
        convert("movielens-20m", movielens, mine)
    assert (mine / "events-00000.parquet").read_text() == "precious"


def test_a_folder_of_another_conversion_is_refused(movielens: Path, tmp_path: Path) -> None:
    convert("movielens-20m", movielens, tmp_path / "logs")
    with pytest.raises(UserError, match="holds movielens-20m, not movielens-32m"):
        convert("movielens-32m", movielens, tmp_path / "logs")
    with (movielens / "ratings.csv").open("a") as file:
        file.write("3,2,1.0,1112486027\n")
    with pytest.raises(UserError, match=r"converted from other files .*they differ in ratings\.csv"):
        convert("movielens-20m", movielens, tmp_path / "logs")
    (tmp_path / "logs" / "items.parquet").unlink()
    with pytest.raises(UserError, match=r"items\.parquet is missing or was changed"):
        convert("movielens-20m", movielens, tmp_path / "logs")


def test_files_of_a_killed_attempt_are_replaced(movielens: Path, tmp_path: Path) -> None:
    logs = write_files(tmp_path / "logs", {"events-00000.parquet": "half", "events-00001.parquet": "of them"})
    write_files(logs / ".convert-0a1b2c3d", {"items.parquet": "half"})
    convert("movielens-20m", movielens, logs)
    assert {path.name for path in logs.iterdir()} == {"conversion.json", "events-00000.parquet", "items.parquet"}
    assert len(rows(logs, "events-00000.parquet")) == 3


def test_two_conversions_into_one_folder_do_not_meet(movielens: Path, tmp_path: Path) -> None:
    def second(table: str, num_rows: int) -> None:
        with pytest.raises(UserError, match="another command is converting into it right now"):
            convert("movielens-20m", movielens, tmp_path / "logs")

    assert convert("movielens-20m", movielens, tmp_path / "logs", second).rows == {"events": 3, "items": 3}


def test_an_error_leaves_nothing_behind(movielens: Path, tmp_path: Path) -> None:
    (movielens / "movies.csv").write_text("movieId,title,genres\n1,A,B\ntwo,C,D\n")
    (tmp_path / "logs").mkdir()
    with pytest.raises(UserError, match=r"movies\.csv: cannot be read .*line 3"):
        convert("movielens-20m", movielens, tmp_path / "logs")
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_file_without_rows_is_an_error(movielens: Path, tmp_path: Path) -> None:
    (movielens / "ratings.csv").write_text("userId,movieId,rating,timestamp\n")
    with pytest.raises(UserError, match="the files for events hold no rows"):
        convert("movielens-20m", movielens, tmp_path / "logs")


def test_a_file_without_a_column_is_an_error(movielens: Path, tmp_path: Path) -> None:
    (movielens / "ratings.csv").write_text("userId,movieId,rating\n1,2,3.0\n")
    with pytest.raises(UserError, match=r"ratings\.csv: cannot be read .*timestamp"):
        convert("movielens-20m", movielens, tmp_path / "logs")


def test_events_are_spread_over_files_and_row_groups(
    movielens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "ROWS_PER_GROUP", 10)
    monkeypatch.setattr(output, "GROUPS_PER_FILE", 3)
    lines = "".join(f"{row},{row + 1},4.0,{row + 2}\n" for row in range(95))
    (movielens / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + lines)
    heard: list[tuple[str, int]] = []

    convert("movielens-20m", movielens, tmp_path / "logs", lambda table, num_rows: heard.append((table, num_rows)))

    files = sorted((tmp_path / "logs").glob("events-*.parquet"))
    groups = [
        [pq.read_metadata(f).row_group(g).num_rows for g in range(pq.read_metadata(f).num_row_groups)] for f in files
    ]
    assert groups == [[10, 10, 10], [10, 10, 10], [10, 10, 10], [5]]
    users = pa.concat_tables([pq.read_table(file) for file in files]).column("user_id").to_pylist()
    assert users == list(range(95))
    assert heard[-2:] == [("events", 95), ("items", 3)]


def test_the_command_prints_one_json_object_or_one_message(movielens: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "cluster.cli",
        "convert",
        "movielens-20m",
        str(movielens),
        str(tmp_path / "logs"),
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["rows"] == {"events": 3, "items": 3}
    (tmp_path / "logs" / "conversion.json").write_text("{}")
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("shoal: ")
    assert len(refused.stderr.splitlines()) == 1
