"""Prepare on logs that two people would read differently: nothing is merged in silence, and the card says what was taken."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.config.run_config import Config
from cluster.driver.prepare_stage import prepare_dataset
from tests.support.prepared import config_at, made, refusal, rows_by_user, vocabulary, write_events, write_table
from trainer.data.dataset.folder import DatasetRequest
from trainer.data.logs.config import LogsConfig

pytestmark = pytest.mark.usefixtures("ray_session")

HEADER = "user_id,item_id,time\n"


def csv(file: Path, *rows: tuple[Any, ...], header: str = HEADER) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(header + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return file


def checks(config: Config) -> dict[str, dict[str, Any]]:
    card = json.loads((config.dataset_dir / "card.json").read_text())
    return {check["name"]: check for check in card["checks"]}


def test_ids_with_leading_zeros_stay_apart(tmp_path: Path) -> None:
    log = ["7", "007", "8", "08", "9", "10"]
    csv(tmp_path / "logs/a.csv", *((user, item, time) for user in ("1", "01") for time, item in enumerate(log)))
    items = csv(tmp_path / "items.csv", ("7", "x"), ("007", "y"), header="item_id,brand\n")
    catalogue = {"path": str(items), "features": {"brand": {"kind": "categorical"}}}
    config = config_at(tmp_path, logs={"items": catalogue})
    assert made(config).counts.num_users == 2
    assert set(vocabulary(config)[1:]) == set(log)
    assert [item for item, _ in rows_by_user(config)["01"].history] == log


def test_an_append_reads_ids_as_the_dataset_does(tmp_path: Path) -> None:
    csv(tmp_path / "logs/a.csv", *((1, item, item) for item in range(1, 5)))
    config = config_at(tmp_path)
    assert made(config).source["columns"]["logs"]["item"]["type"] == "int64"
    csv(tmp_path / "logs/b.csv", (2, "005", 6))
    message = refusal(config)
    for part in ("b.csv row 0", "'005'", '"item_id"', "logs.item_type"):
        assert part in message
    csv(tmp_path / "logs/b.csv", (2, 5, 6))
    assert made(config).generation == 1
    assert vocabulary(config) == [None, 1, 2, 3, 4, 5]
    csv(tmp_path / "text/a.csv", *((1, f"{item:03d}", item) for item in range(1, 5)))
    config = config_at(tmp_path, "text-dataset", logs={"path": str(tmp_path / "text")})
    made(config)
    csv(tmp_path / "text/b.csv", (2, 5, 6))  # all integers, but text in the dataset
    assert made(config).generation == 1
    assert vocabulary(config) == [None, "001", "002", "003", "004", "5"]


def test_settings_at_their_defaults_are_not_part_of_the_identity_of_a_dataset() -> None:
    features = {"a": {"kind": "categorical"}, "t": {"kind": "timestamp"}}
    settings = DatasetRequest(LogsConfig(path="x", features=features), None, {}, {}).settings["logs"]  # type: ignore[arg-type]
    later = {"text", "user_type", "item_type", "time_format", "null_values"}
    assert not later & settings.keys()
    assert not {"type", "format"} & (settings["features"]["a"].keys() | settings["features"]["t"].keys())
    for change in (
        {"item_type": "text"},
        {"text": {"quoting": "none"}},
        {"time_format": "%Y%m%d"},
        {"null_values": ["-"]},
    ):
        other = DatasetRequest(LogsConfig(path="x", features=features, **change), None, {}, {})  # type: ignore[arg-type]
        assert other.settings["logs"] != settings


def test_large_text_files_are_scanned_by_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.data.prepare.SCAN_HERE_BYTES", 0)
    csv(tmp_path / "logs/a.csv", *((1, item, item) for item in range(1, 5)))
    csv(tmp_path / "logs/b.csv", ("x", 1, 1))
    config = config_at(tmp_path)
    assert made(config).source["columns"]["logs"]["user"]["type"] == "string"
    (tmp_path / "logs/b.csv").write_text(f'{HEADER}1,"a,1\n2,"b,2\n')
    message = refusal(config_at(tmp_path, "other"))
    for part in ("b.csv", "line 2", "logs.text.quoting"):
        assert part in message


def test_ids_that_are_the_text_of_a_missing_value_are_on_the_card(tmp_path: Path) -> None:
    rows = [("u", f"i{n}", n) for n in range(10)]
    csv(tmp_path / "logs/a.csv", *rows, ("nan", "None", 1), ("nan", "i 1 ", 2))
    config = config_at(tmp_path)
    made(config)
    check = checks(config)["missing_ids_as_text"]
    assert (check["verdict"], check["value"]) == ("problem", 2 / 12)
    assert "2 of 12 rows by their user (16.67%), 1 of 12 rows by their item (8.33%)" in check["found"]
    assert checks(config)["ids_with_spaces"]["verdict"] == "look"
    config = config_at(tmp_path, "rejecting", logs={"null_values": ["nan", "None"], "max_rejected_fraction": 0.5})
    assert made(config).counts.rejected == {"null user": 2}
    assert checks(config)["missing_ids_as_text"]["verdict"] == "ok"


def test_the_assumed_unit_of_times_is_on_the_card_and_in_the_output(tmp_path: Path) -> None:
    csv(tmp_path / "logs/a.csv", *((1, item, f"05/0{item}/2024") for item in range(1, 6)))
    config = config_at(tmp_path, logs={"time_format": "%m/%d/%Y"})

    class View:
        def __init__(self) -> None:
            self.lines: list[str] = []

        def update(self, *_: Any) -> None: ...

        def clear(self) -> None: ...

        def print_phase(self, _: str) -> None: ...

        def print_line(self, line: str) -> None:
            self.lines.append(line)

    view = View()
    prepare_dataset(config, view)  # type: ignore[arg-type]
    said = "Times were read as the format %m/%d/%Y: 5 without a zone, taken as UTC"
    assert any(said in line for line in view.lines)
    assert said in (config.dataset_dir / "card.html").read_text()
    csv(tmp_path / "logs/a.csv", *((1, item, f"2024-05-0{item}T00:00:00{'Z' * (item > 2)}") for item in range(1, 6)))
    config = config_at(tmp_path, "iso")
    made(config)
    check = checks(config)["time_zones"]
    assert (check["verdict"], check["value"]) == ("look", 0.6)


def test_times_in_several_units_and_impossible_times_are_on_the_card(tmp_path: Path) -> None:
    seconds = [(1, item, 1_700_000_000 + item) for item in range(5)]
    write_events(tmp_path / "logs/a.parquet", seconds)
    config = config_at(tmp_path)
    made(config)
    assert checks(config)["mixed_time_units"]["verdict"] == "ok"
    write_events(tmp_path / "logs/b.parquet", [(u, i, t * 1000) for u, i, t in seconds])
    made(config)
    check = checks(config)["mixed_time_units"]
    assert (check["verdict"], check["found"]) == (
        "problem", "times look like milliseconds in 1, seconds in 1 parts of the logs",
    )  # fmt: skip
    moments = pa.array([0, *range(1_700_000_000, 1_700_000_004)], pa.timestamp("s"))
    columns: dict[str, Any] = {"user_id": [1] * 5, "item_id": list(range(5)), "time": moments}
    file = write_table(tmp_path / "moments/a.parquet", columns)
    os.utime(file, (1_700_000_001, 1_700_000_001))
    config = config_at(tmp_path, "moments-dataset", logs={"path": str(file)})
    made(config)
    check = checks(config)["implausible_times"]
    assert (check["verdict"], check["value"]) == ("look", 2)


def test_quoted_line_breaks_are_on_the_card(tmp_path: Path) -> None:
    header = "user_id,item_id,time,name\n"
    csv(tmp_path / "logs/a.csv", *((1, item, item, '"a, b\nc"') for item in range(1, 6)), header=header)
    config = config_at(tmp_path)
    made(config)
    check = checks(config)["rows_over_several_lines"]
    assert (check["verdict"], check["value"]) == ("look", 5)
    assert "the first begins in line 2" in check["found"]
    config = config_at(tmp_path, "declared", logs={"text": {"quoting": "double"}})
    made(config)
    assert checks(config)["rows_over_several_lines"]["verdict"] == "ok"
