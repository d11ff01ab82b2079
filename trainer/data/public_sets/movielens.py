"""MovieLens ratings by GroupLens: 100K, 1M and 10M with their own separators, 20M, 25M and 32M as CSV.

Times are Unix seconds. The CSV files are ordered by user and movie, not by time.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.public_sets.columns import code_as_text, named_flags, split_text, year_in_title
from trainer.data.public_sets.source import SourceFolder, read_csv, read_double_colon
from trainer.data.public_sets.tables import FLAG, FLOAT, INT, TEXT, TEXTS, Table, events, record_batch, schema_of

EVENTS = schema_of(user_id=INT, item_id=INT, time=INT, rating=FLOAT)
ITEMS = schema_of(item_id=INT, title=TEXT, year=INT, genres=TEXTS)
USERS = schema_of(user_id=INT, gender=TEXT, age=INT, occupation=TEXT, zip_code=TEXT)

_RATING = {"user_id": INT, "item_id": INT, "rating": FLOAT, "time": INT}
_MOVIE = {"item_id": INT, "title": TEXT, "genres": TEXT}
_CSV_RATING = {"userId": INT, "movieId": INT, "rating": FLOAT, "timestamp": INT}
_CSV_MOVIE = {"movieId": INT, "title": TEXT, "genres": TEXT}
_NO_GENRES = "(no genres listed)"
_GENRES_100K = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_MOVIE_100K = ("item_id", "title", "release_date", "video_release_date", "url", *_GENRES_100K)
_USER_100K = ("user_id", "age", "gender", "occupation", "zip_code")


def read_100k(source: SourceFolder) -> list[Table]:
    """Return the tables of u.data, u.item and u.user."""
    ratings = source.one("u.data")
    movies = source.one("u.item")
    users = source.one("u.user")
    rating_batches = read_csv(ratings, _RATING, tuple(_RATING), delimiter="\t", quoted=False)
    return [
        events(EVENTS, _in_order(EVENTS, rating_batches)),
        Table("items", ITEMS, _items_100k(movies)),
        Table("users", USERS, _users_100k(users)),
    ]


def read_double_colons(source: SourceFolder, encoding: str, with_users: bool) -> list[Table]:
    """Return the tables of ratings.dat, movies.dat and, for 1M, users.dat."""
    ratings = source.one("ratings.dat")
    movies = source.one("movies.dat")
    tables = [
        events(EVENTS, _in_order(EVENTS, read_double_colon(ratings, _RATING, encoding))),
        Table("items", ITEMS, _items(read_double_colon(movies, _MOVIE, encoding))),
    ]
    if with_users:
        tables.append(Table("users", USERS, _users_1m(source.one("users.dat"), encoding)))
    return tables


def read_comma_separated(source: SourceFolder) -> list[Table]:
    """Return the tables of ratings.csv and movies.csv; there are no user features."""
    ratings = source.one("ratings.csv")
    movies = source.one("movies.csv")
    movie_batches = (batch.rename_columns(list(_MOVIE)) for batch in read_csv(movies, _CSV_MOVIE))
    rating_batches = (batch.rename_columns(list(_RATING)) for batch in read_csv(ratings, _CSV_RATING))
    return [
        events(EVENTS, _in_order(EVENTS, rating_batches)),
        Table("items", ITEMS, _items(movie_batches)),
    ]


def _in_order(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    return (record_batch(schema, dict(zip(batch.schema.names, batch.columns, strict=True))) for batch in batches)


def _items(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        genres = batch.column("genres")
        named = pc.if_else(pc.equal(genres, _NO_GENRES), "", genres)
        yield _movie(batch, split_text(named, "|"))


def _items_100k(path: Path) -> Iterator[pa.RecordBatch]:
    types = {"item_id": INT, "title": TEXT, **dict.fromkeys(_GENRES_100K, FLAG)}
    for batch in read_csv(path, types, _MOVIE_100K, delimiter="|", encoding="latin-1", quoted=False):
        yield _movie(batch, named_flags([batch.column(genre) for genre in _GENRES_100K], _GENRES_100K))


def _movie(batch: pa.RecordBatch, genres: pa.Array) -> pa.RecordBatch:
    title = batch.column("title")
    columns = {"item_id": batch.column("item_id"), "title": title, "year": year_in_title(title), "genres": genres}
    return record_batch(ITEMS, columns)


def _users_100k(path: Path) -> Iterator[pa.RecordBatch]:
    types = {"user_id": INT, "age": INT, "gender": TEXT, "occupation": TEXT, "zip_code": TEXT}
    return _in_order(USERS, read_csv(path, types, _USER_100K, delimiter="|", encoding="latin-1", quoted=False))


def _users_1m(path: Path, encoding: str) -> Iterator[pa.RecordBatch]:
    types = {"user_id": INT, "gender": TEXT, "age": INT, "occupation": INT, "zip_code": TEXT}
    for batch in read_double_colon(path, types, encoding):
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        yield record_batch(USERS, {**columns, "occupation": code_as_text(columns["occupation"])})
