"""Amazon reviews by the McAuley Lab, editions of 2014, 2018 and 2023: reviews or ratings only, and metadata.

Values that the publisher counted at the time of the crawl are left out (votes for a review, mean ratings, sales ranks,
items bought together): they contain information about later events.
"""

import ast
import html
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.public_sets.source import LineParser, SourceFolder, read_csv, read_json_lines, read_records
from trainer.data.public_sets.tables import FLAG, FLOAT, INT, TEXT, TEXTS, Table, events, record_batch, schema_of
from trainer.errors import UserError

ITEMS = schema_of(item_id=TEXT, title=TEXT, brand=TEXT, main_category=TEXT, categories=TEXTS, price=FLOAT)

_TYPES = {"user_id": TEXT, "item_id": TEXT, "time": INT, "rating": FLOAT, "verified": pa.bool_(), "variant": TEXT}
_JSON_LINES = ("*.json", "*.json.gz", "*.jsonl", "*.jsonl.gz")
_CSV = ("*.csv", "*.csv.gz")
_ITEMS_PER_BATCH = 1 << 16
_PRICE = re.compile(r"\$?\s*([\d,]*\.?\d+)")
_ALT = re.compile(r'alt="([^"]*)"')


@dataclass(frozen=True)
class Edition:
    """Field names of one edition."""

    # Maps our columns to fields of review files.
    reviews: dict[str, str]
    # Maps our columns to columns of ratings-only files, in the order of the file.
    ratings: dict[str, str]
    # Whether ratings-only files have a header line.
    ratings_have_header: bool
    # Field of the item in the metadata.
    item_id: str
    # Field of the brand in the metadata.
    brand: str
    # Field of the categories in the metadata.
    categories: str
    # Field of the main category in the metadata; None takes the first of the categories.
    main_category: str | None
    # Parses a line of the metadata.
    parse: LineParser = json.loads


E2014 = Edition(
    reviews={"user_id": "reviewerID", "item_id": "asin", "time": "unixReviewTime", "rating": "overall"},
    ratings={"user_id": "user", "item_id": "item", "rating": "rating", "time": "timestamp"},
    ratings_have_header=False,
    item_id="asin",
    brand="brand",
    categories="categories",
    main_category=None,
    parse=ast.literal_eval,  # the metadata of that year are Python literals, with single quotes
)
E2018 = Edition(
    reviews={**E2014.reviews, "verified": "verified"},
    ratings={"item_id": "item", "user_id": "user", "rating": "rating", "time": "timestamp"},  # the item comes first
    ratings_have_header=False,
    item_id="asin",
    brand="brand",
    categories="category",
    main_category="main_cat",
)
E2023 = Edition(
    reviews={
        "user_id": "user_id",
        "item_id": "parent_asin",
        "time": "timestamp",
        "rating": "rating",
        "verified": "verified_purchase",
        "variant": "asin",
    },
    ratings={"user_id": "user_id", "item_id": "parent_asin", "rating": "rating", "time": "timestamp"},
    ratings_have_header=True,
    item_id="parent_asin",
    brand="store",
    categories="categories",
    main_category="main_category",
)


def read(source: SourceFolder, edition: Edition) -> list[Table]:
    """Return reviews or ratings-only files as events, and meta_* files as items."""
    json_lines = source.any(*_JSON_LINES)
    ratings = source.any(*_CSV)
    metadata = [path for path in json_lines if path.name.startswith("meta_")]
    reviews = [path for path in json_lines if not path.name.startswith("meta_")]
    if reviews and ratings:
        raise source.wrong(
            f"it has reviews ({reviews[0].name}) and ratings-only files ({ratings[0].name}), which hold the same events; "
            "keep one kind"
        )
    if not reviews and not ratings:
        raise source.wrong("the folder has neither reviews (JSON lines) nor ratings-only files (CSV)")
    tables = [_events_of_reviews(reviews, edition) if reviews else _events_of_ratings(ratings, edition)]
    if metadata:
        tables.append(Table("items", ITEMS, _items(metadata, edition)))
    return tables


def _events_of_reviews(paths: list[Path], edition: Edition) -> Table:
    fields = edition.reviews
    json_schema = pa.schema([(field, _TYPES[column]) for column, field in fields.items()])
    schema = pa.schema([(column, FLAG if column == "verified" else _TYPES[column]) for column in fields])

    def batches() -> Iterator[pa.RecordBatch]:
        for path in paths:
            for batch in read_json_lines(path, json_schema):
                yield record_batch(schema, dict(zip(fields, batch.columns, strict=True)))

    return events(schema, batches())


def _events_of_ratings(paths: list[Path], edition: Edition) -> Table:
    fields = edition.ratings
    types = {field: _TYPES[column] for column, field in fields.items()}
    names = None if edition.ratings_have_header else tuple(types)
    schema = schema_of(user_id=TEXT, item_id=TEXT, time=INT, rating=FLOAT)

    def batches() -> Iterator[pa.RecordBatch]:
        for path in paths:
            for batch in read_csv(path, types, names):
                columns = dict(zip(fields, batch.columns, strict=True))
                if names is not None:
                    _check_users(path, columns["user_id"])
                yield record_batch(schema, columns)

    return events(schema, batches())


def _check_users(path: Path, users: pa.Array) -> None:
    """Check that the ids of users are reviewers' ids, which begin with A. Raises UserError.

    The editions of 2014 and 2018 differ only in the order of two columns.
    """
    if (pc.mean(pc.starts_with(users, "A")).as_py() or 0.0) < 0.5:
        raise UserError(
            f"{path}: the ids in the user column are no reviewers' ids, which begin with A; user and item are the first and "
            "second column in the edition of 2014, and reversed in that of 2018: convert it as the other edition"
        )


def _items(paths: list[Path], edition: Edition) -> Iterator[pa.RecordBatch]:
    """Yield each item once, with the values of its first record: files repeat records, and categories share items."""
    seen: set[str] = set()

    def rows() -> Iterator[dict[str, Any]]:
        for path in paths:
            for record in read_records(path, edition.parse):
                item_id = record.get(edition.item_id)
                if isinstance(item_id, str) and item_id not in seen:
                    seen.add(item_id)
                    yield _item(item_id, record, edition)

    remaining = rows()
    while batch := list(islice(remaining, _ITEMS_PER_BATCH)):
        yield pa.RecordBatch.from_pylist(batch, schema=ITEMS)


def _item(item_id: str, record: dict[str, Any], edition: Edition) -> dict[str, Any]:
    categories = list(dict.fromkeys(_plain(name) for name in _flat(record.get(edition.categories))))
    first = categories[0] if categories else None
    main = _plain(record.get(edition.main_category)) if edition.main_category else first
    return {
        "item_id": item_id,
        "title": _plain(record.get("title")),
        "brand": _plain(record.get(edition.brand)),
        "main_category": main,
        "categories": categories,
        "price": _price(record.get("price")),
    }


def _flat(value: Any) -> Iterable[str]:
    """Yield all categories. 2014 has a list of category paths, later editions one path; some records have a text or nothing."""
    if isinstance(value, list):
        for inner in value:
            yield from _flat(inner)
    elif isinstance(value, str) and value.strip():
        yield value


def _plain(value: Any) -> str | None:
    """Return text without HTML entities. An image, which some main categories of 2018 are, becomes its alternative text."""
    if not isinstance(value, str):
        return None
    if value.startswith("<img"):
        match = _ALT.search(value)
        value = match[1] if match else ""
    return html.unescape(value).strip() or None


def _price(value: Any) -> float | None:
    """Parse a number or "$1,234.50"; null for ranges and anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _PRICE.fullmatch(value.strip()) if isinstance(value, str) else None
    return float(match[1].replace(",", "")) if match else None
