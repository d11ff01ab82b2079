"""Times, numbers and labels in text files: every supported format is read, every other one is refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.trainer.data.logs.test_reading import events, inspect, logs_at, read, refusal, write
from tests.trainer.data.logs.test_text_files import DAY, csv, times
from trainer.data.logs.config import LogsConfig
from trainer.data.logs.observations import WITH_ZONE, WITHOUT_ZONE
from trainer.errors import UserError

# Times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-05-01", DAY),
        ("2024-05-01T00:00:01.5", DAY + 1_500_000),
        ("2024-05-01 02:00:00+02:00", DAY),
        ("2024-05-01T00:00:00Z", DAY),
        ("2024-04-30T19:00:00-0500", DAY),
        ("2024-05-01T00:00:00.123456789", DAY + 123_456),
        ("2024-05-01T00:00:00.123456789Z", DAY + 123_456),
    ],
)
def test_iso_times_are_read_from_text_of_either_format(tmp_path: Path, text: str, expected: int) -> None:
    assert times(tmp_path, "2024-05-01T00:00:00", text) == [DAY, expected]
    write(tmp_path / "p/a.parquet", time=[text, "2024-05-01", "2024-05-01T00:00:00Z"])
    logs = logs_at(tmp_path / "p")
    assert inspect(logs).time_kind == "timestamp"
    assert sorted(row[2] for row in events(logs)) == sorted([expected, DAY, DAY])
    zoned = 1 + text.endswith(("Z", "00:00+02:00", "-0500"))
    [block] = read(logs)
    assert (block.observed[WITH_ZONE], block.observed[WITHOUT_ZONE]) == (zoned, 3 - zoned)


@pytest.mark.parametrize(
    ("text", "format", "expected"),
    [
        ("05/01/2024", "%m/%d/%Y", DAY),
        ("5/1/2024 10:00 PM", "%m/%d/%Y %I:%M %p", DAY + 22 * 3_600_000_000),
        ("01.05.2024 00:00:01.25", "%d.%m.%Y %H:%M:%S.%f", DAY + 1_250_000),
        ("01/May/2024:02:00:00 +0200", "%d/%b/%Y:%H:%M:%S %z", DAY),
        ("30/Apr/2024:22:00:00 -0200", "%d/%b/%Y:%H:%M:%S %z", DAY),
        ("20240501", "%Y%m%d", DAY),
        ("1.5.24", "%d.%m.%y", DAY),
    ],
)
def test_a_format_of_times(tmp_path: Path, text: str, format: str, expected: int) -> None:
    assert times(tmp_path, text, "", text, time_format=format) == [expected, expected]
    write(tmp_path / "p/a.parquet", time=[text] * 3)
    assert [row[2] for row in events(logs_at(tmp_path / "p", time_format=format))] == [expected] * 3
    csv(tmp_path / "f", f"user_id,item_id,time,t\n1,1,1,{text}\n")
    feature = {"t": {"kind": "timestamp", "format": format}}
    assert events(logs_at(tmp_path / "f", features=feature)) == [(1, 1, 1, expected, 0)]


@pytest.mark.parametrize(
    ("texts", "format", "words"),
    [
        (["05/01/2024"], None, ["row 0", "05/01/2024", "ISO"]),
        (["2024-05-01", "01.05.2024"], None, ["row 1", "01.05.2024", "ISO"]),
        (["02/29/2024", "02/30/2024"], "%m/%d/%Y", ["row 1", "02/30/2024"]),
        (["05/01/24"], "%m/%d/%Y", ["05/01/24"]),
        (["05/01/2024 10:00"], "%m/%d/%Y", ["05/01/2024 10:00"]),
        (["13/01/2024"], "%m/%d/%Y", ["13/01/2024"]),
    ],
)
def test_times_in_another_format_are_never_guessed(
    tmp_path: Path, texts: list[str], format: str | None, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        times(tmp_path, *texts, time_format=format)
    for word in ("a.csv", '"time"', "logs.time_format", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("format", ["%Q", "%H:%M", "%m/%d/%Y %I:%M", "%Y-%m-%d %f", "%d/%m/%Y %d"])
def test_formats_that_cannot_be_read_are_refused_by_the_config(format: str) -> None:
    with pytest.raises(ValidationError, match="format"):
        LogsConfig(path="x", time_format=format)


# Numbers


@pytest.mark.parametrize(
    ("text", "decimal", "thousands", "expected"),
    [
        ("1,299.00", ".", ",", 1299.0),
        ("1299.5", ".", ",", 1299.5),
        ("12,5", ",", "", 12.5),
        ("-1.299.000,25", ",", ".", -1299000.25),
        ("1 299", ".", " ", 1299.0),
        ("1'299.5", ".", "'", 1299.5),
        ("+7", ".", "", 7.0),
        ("1e3", ".", "", 1000.0),
        ("NaN", ".", "", None),
    ],
)
def test_numbers_as_people_write_them(
    tmp_path: Path, text: str, decimal: str, thousands: str, expected: float | None
) -> None:
    csv(tmp_path, f'user_id,item_id,time,n\n1,2,3,"{text}"\n')
    logs = logs_at(tmp_path, text={"decimal": decimal, "thousands": thousands}, features={"n": {"kind": "numeric"}})
    assert [row[3] for row in events(logs)] == [expected]


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("1,299.00", {}),
        ("12,5", {}),
        ("-", {}),
        ("1.5", {"decimal": ","}),
        ("1,29", {"thousands": ","}),
        ("1,2990", {"thousands": ","}),
        ("$5", {"thousands": ","}),
    ],
)
def test_other_numbers_are_refused_with_row_value_and_setting(
    tmp_path: Path, text: str, settings: dict[str, str]
) -> None:
    csv(tmp_path, f'user_id,item_id,time,n\n1,2,3,7\n1,2,3,"{text}"\n')
    message = refusal(logs_at(tmp_path, text=settings, features={"n": {"kind": "numeric"}}))
    parts = (
        "a.csv row 1",
        repr(text),
        '"n"',
        "logs.features.n",
        "logs.text.decimal",
        "logs.text.thousands",
        "null_values",
    )
    for part in parts:
        assert part in message


def test_labels_are_numbers_or_words(tmp_path: Path) -> None:
    csv(tmp_path, 'user_id,item_id,time,y,z\n1,2,3,true,"0,5"\n1,2,4,False,1\n')
    logs = logs_at(tmp_path, labels=["y", "z"], history_label="y", text={"decimal": ","})
    assert [row[3:5] for row in events(logs)] == [(1.0, 0.5), (0.0, 1.0)]
