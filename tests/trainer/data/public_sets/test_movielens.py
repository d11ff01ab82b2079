"""MovieLens in its three formats."""

from pathlib import Path

import pytest

from tests.trainer.data.public_sets.originals import MOVIELENS_CSV, columns, rows, write_files
from trainer.data.public_sets.sets import convert
from trainer.errors import UserError

RATINGS_1M = "1::1193::5::978300760\n2::661::3::978302109\n1::661::3::978302109\n"
MOVIES_1M = (
    '661::James and the Giant Peach (1996)::Animation|Children\'s\n73::"Misérables", Les: a 1:2 story (1995)::Drama\n'
)
USERS_1M = "1::F::1::10::48067\n2::M::56::16::70072-1234\n"


def test_1m_is_split_at_double_colons_and_read_as_latin_1(tmp_path: Path) -> None:
    source = write_files(
        tmp_path / "ml-1m",
        {
            "ratings.dat": RATINGS_1M,
            "movies.dat": MOVIES_1M.encode("latin-1"),
            "users.dat": USERS_1M,
            "README": "no file of ours",
        },
    )

    done = convert("movielens-1m", source, tmp_path / "logs")

    assert columns(tmp_path / "logs", "events-00000.parquet") == {
        "user_id": "int64",
        "item_id": "int64",
        "time": "int64",
        "rating": "double",
    }
    assert rows(tmp_path / "logs", "events-00000.parquet") == [
        (1, 1193, 978300760, 5.0),
        (2, 661, 978302109, 3.0),
        (1, 661, 978302109, 3.0),
    ]
    assert rows(tmp_path / "logs", "items.parquet") == [
        (661, "James and the Giant Peach (1996)", 1996, ["Animation", "Children's"]),
        (73, '"Misérables", Les: a 1:2 story (1995)', 1995, ["Drama"]),
    ]
    assert rows(tmp_path / "logs", "users.parquet") == [
        (1, "F", 1, "10", "48067"),
        (2, "M", 56, "16", "70072-1234"),
    ]
    assert done.rows == {"events": 3, "items": 2, "users": 2}
    assert sorted(done.source) == ["movies.dat", "ratings.dat", "users.dat"]


def test_10m_is_utf_8_with_half_stars_and_has_no_users(tmp_path: Path) -> None:
    source = write_files(
        tmp_path / "ml-10M100K",
        {"ratings.dat": "1::122::4.5::838985046\n", "movies.dat": "122::Café Lumière (2003)::Drama\n"},
    )
    convert("movielens-10m", source, tmp_path / "logs")
    assert rows(tmp_path / "logs", "events-00000.parquet") == [(1, 122, 838985046, 4.5)]
    assert rows(tmp_path / "logs", "items.parquet") == [(122, "Café Lumière (2003)", 2003, ["Drama"])]
    assert not (tmp_path / "logs" / "users.parquet").exists()


@pytest.mark.parametrize("name", ["movielens-20m", "movielens-25m", "movielens-32m"])
def test_csv_sets_have_quoted_titles_and_films_without_year_or_genres(tmp_path: Path, name: str) -> None:
    source = write_files(tmp_path / "ml", MOVIELENS_CSV)
    convert(name, source, tmp_path / "logs")
    assert rows(tmp_path / "logs", "events-00000.parquet") == [
        (1, 2, 1112486027, 3.5),
        (1, 29, 1112484676, 4.0),
        (2, 2, 1112486027, 5.0),
    ]
    assert rows(tmp_path / "logs", "items.parquet") == [
        (2, "American President, The (1995)", 1995, ["Comedy", "Drama", "Romance"]),
        (29, "City of Lost Children, The (Cité des enfants perdus, La) (1995)", 1995, ["Sci-Fi"]),
        (171749, "Death Note: Desu nôto (2006\u20132007)", None, []),
    ]


def test_100k_has_genres_as_flags(tmp_path: Path) -> None:
    flags = "0|0|0|1|1|1" + "|0" * 13
    items = f"1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story%20(1995)|{flags}\n"
    items += "267|unknown||||1" + "|0" * 18 + "\n"
    items += "1500|Santa with \xc9clairs (1996)|1-Jan-1996||url" + "|0" * 19 + "\n"
    source = write_files(
        tmp_path / "ml-100k",
        {
            "u.data": "196\t242\t3\t881250949\n186\t302\t3\t891717742\n",
            "u.item": items.encode("latin-1"),
            "u.user": "1|24|M|technician|85711\n2|53|F|other|V3N4P\n",
        },
    )
    convert("movielens-100k", source, tmp_path / "logs")
    assert rows(tmp_path / "logs", "events-00000.parquet") == [(196, 242, 881250949, 3.0), (186, 302, 891717742, 3.0)]
    assert rows(tmp_path / "logs", "items.parquet") == [
        (1, "Toy Story (1995)", 1995, ["Animation", "Children's", "Comedy"]),
        (267, "unknown", None, ["unknown"]),
        (1500, "Santa with Éclairs (1996)", 1996, []),
    ]
    assert rows(tmp_path / "logs", "users.parquet") == [
        (1, "M", 24, "technician", "85711"),
        (2, "F", 53, "other", "V3N4P"),
    ]


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    ratings = RATINGS_1M + "3::661::five::978302109\n"
    source = write_files(
        tmp_path / "ml", {"ratings.dat": ratings, "movies.dat": "1::A (1990)::Drama\n", "users.dat": USERS_1M}
    )
    with pytest.raises(UserError, match=r"ratings\.dat: cannot be read .*line 4: .*'five'.*download it again"):
        convert("movielens-1m", source, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
