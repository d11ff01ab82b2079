"""Quotes in text files: rows that they swallow are refused, line breaks within them are read."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.data.logs.test_reading import events, inspect, logs_at, refusal
from tests.trainer.data.logs.test_text_files import HEADER, csv, ids
from trainer.data.logs.quotes import QuoteWatch

# Quotes


def names_in_quotes(rows: int = 40, opening: tuple[int, ...] = (3, 9)) -> str:
    """Return a TSV in which some names begin with a quote that means nothing."""
    marks = dict.fromkeys(opening, '"')
    lines = (f"{n}\t{n % 5}\t{marks.get(n, '')}Name {n}\t{n}\n" for n in range(rows))
    return "user_id\titem_id\tname\ttime\n" + "".join(lines)


@pytest.mark.parametrize("opening", [(3, 9), (3, 9, 20), (3,), (39,)])
def test_quotes_that_swallow_rows_are_refused_with_line_and_setting(tmp_path: Path, opening: tuple[int, ...]) -> None:
    file = csv(tmp_path, names_in_quotes(opening=opening), "a.tsv")
    message = refusal(logs_at(tmp_path))
    for part in (str(file), f"line {opening[0] + 2}", f'"Name {opening[0]}', 'logs.text.quoting = "none"'):
        assert part in message
    assert "damaged" not in message
    assert len(events(logs_at(tmp_path, text={"quoting": "none"}))) == 40


def test_a_quote_in_the_last_column_swallows_no_rows(tmp_path: Path) -> None:
    csv(tmp_path, 'user_id,item_id,time,name\n1,1,1,a\n\n1,1,2,"b\n1,1,3,c\n1,1,4,d\n')
    message = refusal(logs_at(tmp_path))
    assert "line 4" in message  # an empty line counts as well
    assert "logs.text.quoting" in message


def test_quoted_line_breaks_are_read_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.logs.text_scan.SCAN_BYTES", 1000)
    monkeypatch.setattr("trainer.data.logs.formats.CSV_BLOCK_BYTES", 1000)
    rows = "".join(f'{n},"a, ""fine""\nshoe\r\nno. {n}",{n},{n}\n' for n in range(200))
    csv(tmp_path, f"user_id,name,item_id,time\n5,x,5,5\n{rows}")
    logs = logs_at(tmp_path)
    assert ids(logs) == [(5, 5), *((n, n) for n in range(200))]
    [spanning] = inspect(logs).spanning.values()
    assert (spanning.num_rows, spanning.first_line) == (200, 3)
    csv(tmp_path, f"{HEADER}1,2,3\n")
    assert inspect(logs).spanning == {}


def test_line_breaks_that_look_like_rows_need_a_setting(tmp_path: Path) -> None:
    csv(tmp_path, 'user_id,item_id,time,name\n1,1,1,"a\n2,2,2,b"\n')
    assert 'logs.text.quoting = "double"' in refusal(logs_at(tmp_path))
    assert ids(logs_at(tmp_path, text={"quoting": "double"})) == [(1, 1)]


BEHIND_QUOTES = [
    '"A" x',
    '"A"x"',
    '"" x',
    '"a ""b"" c" d',
    '"A" ',
    '"say \\"hi\\""',
    '"A\nB" x',
    '"5" tv',
    '"\u00e4"\u00e4',
]


@pytest.mark.parametrize("name", BEHIND_QUOTES)
@pytest.mark.parametrize("place", ["first", "inner", "last"])
def test_text_behind_a_closing_quote_needs_a_setting(tmp_path: Path, name: str, place: str) -> None:
    """The parser drops the two quotes and joins the rest, so that `"A" x` and `A x` would become one."""
    if place == "first":
        file = csv(tmp_path, f"name,user_id,item_id,time\r\nx,1,1,1\r\n{name},1,2,2\r\n")
    elif place == "inner":
        file = csv(tmp_path, f'user_id,"name",item_id,time\n1,"x",1,1\n1,{name},2,2\n')
    else:
        file = csv(tmp_path, f"user_id,item_id,time,name\n1,1,1,x\n1,2,2,{name}")
    message = refusal(logs_at(tmp_path))
    line = 3 + name.count("\n")
    for part in (str(file), f"line {line} ", 'logs.text.quoting = "none"', '"escaped"', '"double"'):
        assert part in message
    assert ids(logs_at(tmp_path, text={"quoting": "double"})) == [(1, 1), (1, 2)]
    if "\n" not in name:
        assert ids(logs_at(tmp_path, text={"quoting": "none"})) == [(1, 1), (1, 2)]


def test_quotes_that_close_where_the_field_ends_need_no_setting(tmp_path: Path) -> None:
    names = ['"A"', '""', '"a ""b"""', '"""a"""', '5" tv', 'a "b" c', '"a, b"', '"a\nb"', 'x""', '""""', 'a"']
    rows = "".join(f"{name},1,{n},{n}\r\n" for n, name in enumerate(names))
    csv(tmp_path, "\ufeff" + f'"name","user_id","item_id","time"\r\n{rows}"b",1,99,"99"')
    assert [item for _, item in ids(logs_at(tmp_path))] == [*range(len(names)), 99]


@pytest.mark.parametrize("delimiter", [",", "\t", "^"])
def test_text_behind_quotes_is_found_however_the_file_is_cut(delimiter: str) -> None:
    """Equal to a walk over the characters, for random files cut at random places."""
    random = np.random.default_rng(5)
    marks = np.array(['"', '"', '"', delimiter, "\n", "\r", "a", " "])
    num_found = 0
    for _ in range(2000):
        text = "".join(random.choice(marks, random.integers(0, 24)))
        cuts = sorted(random.integers(0, len(text) + 1, 3))
        watch = QuoteWatch(delimiter)
        for begin, end in pairwise([0, *cuts, len(text)]):
            watch.feed(text[begin:end].encode())
        watch.finish()
        expected = closing_quote_with_text_behind(text, delimiter)
        assert watch.offset == expected, repr(text)
        num_found += expected is not None
    assert 500 < num_found < 1900


def closing_quote_with_text_behind(text: str, delimiter: str) -> int | None:
    """Return the place of the first closing quote that is not followed by the end of its field."""
    ends = (delimiter, "\n", "\r")
    place = 0
    while place < len(text):
        if text[place] == '"':  # at the beginning of a field
            place += 1
            while place < len(text) and (text[place] != '"' or text[place : place + 2] == '""'):
                place += 2 if text[place] == '"' else 1
            place += 1
            if place < len(text) and text[place] not in ends:
                return place - 1
        while place < len(text) and text[place] not in ends:
            place += 1
        place += 1
    return None


def test_quotes_inside_fields(tmp_path: Path) -> None:
    csv(tmp_path, 'user_id,item_id,time\nu,"5"" tv",1\nu,5" tv,2\n')
    assert ids(logs_at(tmp_path)) == [("u", '5" tv')] * 2
    csv(tmp_path, 'user_id,item_id,time\nu,"5\\" tv, new",1\n')
    assert ids(logs_at(tmp_path, text={"quoting": "escaped"})) == [("u", '5" tv, new')]
