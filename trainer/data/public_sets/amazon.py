"""Amazon reviews by the McAuley Lab, in their editions of 2014, 2018 and 2023: reviews or ratings only, and metadata.

What the publisher counted at the time of the crawl (votes for a review, mean ratings, sales ranks, what was bought
together) knows of events after the one at hand, and is left out.
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
    """What the fields are called. `reviews` and `ratings` map our columns to theirs, `ratings` in the order of the file."""

    reviews: dict[str, str]
    ratings: dict[str, str]
    ratings_have_header: bool
    item_id: str
    brand: str
    categories: str
    main_category: str | None  # None: the first of the categories
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
    """Reviews or ratings-only files as events, meta_* files as items."""
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
    json_schema = pa.schema([(theirs, _TYPES[ours]) for ours, theirs in fields.items()])
    schema = pa.schema([(ours, FLAG if ours == "verified" else _TYPES[ours]) for ours in fields])

    def batches() -> Iterator[pa.RecordBatch]:
        for path in paths:
            for batch in read_json_lines(path, json_schema):
                yield record_batch(schema, dict(zip(fields, batch.columns, strict=True)))

    return events(schema, batches())


def _events_of_ratings(paths: list[Path], edition: Edition) -> Table:
    fields = edition.ratings
    types = {theirs: _TYPES[ours] for ours, theirs in fields.items()}
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
    """The editions of 2014 and 2018 differ in nothing but the order of two columns, and reviewers' ids begin with A."""
    if (pc.mean(pc.starts_with(users, "A")).as_py() or 0.0) < 0.5:
        raise UserError(
            f"{path}: the ids in the column of the user are no reviewers' ids, which begin with A; user and item are the "
            "first and second column in the edition of 2014, and the other way round in that of 2018: convert it as the other"
        )


def _items(paths: list[Path], edition: Edition) -> Iterator[pa.RecordBatch]:
    """Each item once, as the first record says: files repeat records, and categories share items."""
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
    """2014 has a list of paths of categories, later editions one path; some records have a text or nothing."""
    if isinstance(value, list):
        for inner in value:
            yield from _flat(inner)
    elif isinstance(value, str) and value.strip():
        yield value


def _plain(value: Any) -> str | None:
    """Text without HTML entities; of an image, as 2018 has some for main categories, what it stands for."""
    if not isinstance(value, str):
        return None
    if value.startswith("<img"):
        found = _ALT.search(value)
        value = found[1] if found else ""
    return html.unescape(value).strip() or None


def _price(value: Any) -> float | None:
    """A number or "$1,234.50"; null for ranges and anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    found = _PRICE.fullmatch(value.strip()) if isinstance(value, str) else None
    return float(found[1].replace(",", "")) if found else None
