"""Amazon reviews of 2014, 2018 and 2023: reviews, ratings only, metadata."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.data.public_sets.originals import columns, json_lines, rows, write_files
from trainer.data.public_sets.sets import convert
from trainer.errors import UserError

REVIEWS_2018: list[dict[str, Any]] = [
    {
        "overall": 5.0,
        "vote": "2",
        "verified": True,
        "reviewTime": "09 1, 2016",
        "reviewerID": "A3CIUOJXQ5VDQ2",
        "asin": "B0000530HU",
        "style": {"Size:": " 7.0 oz"},
        "reviewerName": "Shelly F",
        "reviewText": 'As "advertised".\nReasonably priced',
        "unixReviewTime": 1472688000,
    },
    {  # other fields, an integer as rating
        "overall": 4,
        "verified": False,
        "reviewerID": "A3H7T87S984REU",
        "asin": "B0000530HU",
        "image": ["https://example.org/a.jpg"],
        "unixReviewTime": 1384387200,
    },
    {"overall": 1.0, "verified": True, "asin": "B00006L9LC", "unixReviewTime": 1384387200},  # no reviewer
]
META_2018: list[dict[str, Any]] = [
    {
        "category": ["All Beauty", "Skin Care &amp; Tools"],
        "title": "Loud &#39;N Clear&trade; Amplifier",
        "brand": "idea village",
        "rank": "2,938,573 in Beauty &amp; Personal Care (",
        "main_cat": "All Beauty",
        "price": "$1,085.50",
        "asin": "6546546450",
        "also_buy": ["B00005N7P0"],
    },
    {
        "category": [],
        "rank": [],
        "main_cat": '<img src="x.png" alt="AMAZON FASHION"/>',
        "price": "$3.00 - $9.99",
        "asin": "7178680776",
    },
    {"title": "The same again", "price": "", "asin": "6546546450"},
]


def test_2018_reviews_and_metadata(tmp_path: Path) -> None:
    source = write_files(
        tmp_path / "amazon",
        {"All_Beauty.json.gz": json_lines(*REVIEWS_2018), "meta_All_Beauty.json.gz": json_lines(*META_2018)},
    )
    done = convert("amazon-reviews-2018", source, tmp_path / "logs")
    assert columns(tmp_path / "logs", "events-00000.parquet") == {
        "user_id": "string",
        "item_id": "string",
        "time": "int64",
        "rating": "double",
        "verified": "int8",
    }
    assert rows(tmp_path / "logs", "events-00000.parquet") == [
        ("A3CIUOJXQ5VDQ2", "B0000530HU", 1472688000, 5.0, 1),
        ("A3H7T87S984REU", "B0000530HU", 1384387200, 4.0, 0),
        (None, "B00006L9LC", 1384387200, 1.0, 1),
    ]
    assert rows(tmp_path / "logs", "items.parquet") == [
        (
            "6546546450",
            "Loud 'N Clear™ Amplifier",
            "idea village",
            "All Beauty",
            ["All Beauty", "Skin Care & Tools"],
            1085.5,
        ),
        ("7178680776", None, None, "AMAZON FASHION", [], None),
    ]
    assert done.rows == {"events": 3, "items": 2}


def test_2014_and_2018_ratings_have_user_and_item_the_other_way_round(tmp_path: Path) -> None:
    ratings_2014 = "A39HTATAQ9V7YF,0205616461,5.0,1369699200\nA3JM6GV9MNOF9X,0558925278,3.0,1355443200\n"
    ratings_2018 = "0205616461,A39HTATAQ9V7YF,5.0,1369699200\n0558925278,A3JM6GV9MNOF9X,3.0,1355443200\n"
    old = write_files(tmp_path / "2014", {"ratings_Beauty.csv": ratings_2014})
    new = write_files(tmp_path / "2018", {"All_Beauty.csv": ratings_2018})

    convert("amazon-reviews-2014", old, tmp_path / "old")
    convert("amazon-reviews-2018", new, tmp_path / "new")

    expected = [
        ("A39HTATAQ9V7YF", "0205616461", 1369699200, 5.0),
        ("A3JM6GV9MNOF9X", "0558925278", 1355443200, 3.0),
    ]
    assert rows(tmp_path / "old", "events-00000.parquet") == expected
    assert rows(tmp_path / "new", "events-00000.parquet") == expected
    with pytest.raises(UserError, match=r"ratings_Beauty\.csv: .*reversed in that of 2018.*convert it as the other"):
        convert("amazon-reviews-2018", old, tmp_path / "wrong")


def test_2014_metadata_are_python_literals(tmp_path: Path) -> None:
    reviews = json_lines(
        {"reviewerID": "A1", "asin": "0558925278", "helpful": [0, 1], "overall": 3.0, "unixReviewTime": 1355443200}
    )
    metadata = (
        "{'asin': '0558925278', 'title': \"Ecotools' Brush Set\", 'price': 12.5, 'salesRank': {'Beauty': 402875}, "
        "'categories': [['Beauty', 'Tools'], ['Beauty', 'Gifts']]}\n"
    )
    source = write_files(tmp_path / "amazon", {"reviews_Beauty_5.json.gz": reviews, "meta_Beauty.json.gz": metadata})
    convert("amazon-reviews-2014", source, tmp_path / "logs")
    assert rows(tmp_path / "logs", "events-00000.parquet") == [("A1", "0558925278", 1355443200, 3.0)]
    assert rows(tmp_path / "logs", "items.parquet") == [
        ("0558925278", "Ecotools' Brush Set", None, "Beauty", ["Beauty", "Tools", "Gifts"], 12.5)
    ]


def test_2023_items_are_parents_and_times_milliseconds(tmp_path: Path) -> None:
    review = {
        "rating": 5.0,
        "title": "Lovely",
        "images": [{"small_image_url": "s"}],
        "asin": "B00YQ6X8EO",
        "helpful_vote": 7,
    }
    review |= {
        "parent_asin": "B00PARENT0",
        "user_id": "AGKHLEW2",
        "timestamp": 1588687728923,
        "verified_purchase": True,
    }
    metadata = [
        {"main_category": "All Beauty", "title": "Cream", "average_rating": 4.2, "rating_number": 15, "price": None}
        | {
            "store": "Bissport",
            "categories": ["Beauty", "Face"],
            "details": {"Brand": "B"},
            "parent_asin": "B00PARENT0",
        },
        {
            "main_category": None,
            "title": "Spray",
            "price": "from 12.99",
            "store": None,
            "categories": [],
            "parent_asin": "B2",
        },
        {
            "main_category": "X",
            "title": "Soap",
            "price": "12.99",
            "store": "S",
            "categories": ["C"],
            "parent_asin": "B3",
        },
    ]
    source = write_files(
        tmp_path / "amazon", {"All_Beauty.jsonl": json_lines(review), "meta_All_Beauty.jsonl.gz": json_lines(*metadata)}
    )
    convert("amazon-reviews-2023", source, tmp_path / "logs")
    assert columns(tmp_path / "logs", "events-00000.parquet")["variant"] == "string"
    assert rows(tmp_path / "logs", "events-00000.parquet") == [
        ("AGKHLEW2", "B00PARENT0", 1588687728923, 5.0, 1, "B00YQ6X8EO")
    ]
    assert rows(tmp_path / "logs", "items.parquet") == [
        ("B00PARENT0", "Cream", "Bissport", "All Beauty", ["Beauty", "Face"], None),
        ("B2", "Spray", None, None, [], None),
        ("B3", "Soap", "S", "X", ["C"], 12.99),
    ]


def test_2023_ratings_only_have_a_header(tmp_path: Path) -> None:
    ratings = "user_id,parent_asin,rating,timestamp\nAE2,B00PARENT0,4.0,1588687728923\n"
    source = write_files(tmp_path / "amazon", {"All_Beauty.csv.gz": ratings})
    convert("amazon-reviews-2023", source, tmp_path / "logs")
    assert rows(tmp_path / "logs", "events-00000.parquet") == [("AE2", "B00PARENT0", 1588687728923, 4.0)]


def test_reviews_beside_ratings_are_refused(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "All_Beauty.json.gz": json_lines(REVIEWS_2018[0]),
        "All_Beauty.csv": "B1,A1,5.0,1\n",
    }
    with pytest.raises(UserError, match="hold the same events; keep one kind"):
        convert("amazon-reviews-2018", write_files(tmp_path / "amazon", files), tmp_path / "logs")


def test_a_folder_without_reviews_is_refused_with_the_missing_file(tmp_path: Path) -> None:
    source = write_files(tmp_path / "amazon", {"meta_All_Beauty.json.gz": json_lines(META_2018[0])})
    with pytest.raises(
        UserError, match=r"neither reviews .* nor ratings.*must hold CATEGORY\.json\.gz or CATEGORY\.csv"
    ):
        convert("amazon-reviews-2018", source, tmp_path / "logs")


@pytest.mark.parametrize("bad", ['{"overall": 5.0, "asin"', '{"overall": "five"}', "[1, 2]"])
def test_a_malformed_review_is_named_by_its_line(tmp_path: Path, bad: str) -> None:
    content = json_lines(REVIEWS_2018[0], REVIEWS_2018[1]) + bad + "\n" + json_lines(REVIEWS_2018[0])
    source = write_files(tmp_path / "amazon", {"All_Beauty.json.gz": content})
    with pytest.raises(UserError, match=r"All_Beauty\.json\.gz: cannot be read .*line 3.*download it again"):
        convert("amazon-reviews-2018", source, tmp_path / "logs")


def test_a_malformed_item_is_named_by_its_line(tmp_path: Path) -> None:
    metadata = json_lines(META_2018[0]) + '{"asin": "B1"\n'
    files: dict[str, str | bytes] = {"A.json": json_lines(REVIEWS_2018[0]), "meta_A.json": metadata}
    with pytest.raises(UserError, match=r"meta_A\.json line 2: is not a record"):
        convert("amazon-reviews-2018", write_files(tmp_path / "amazon", files), tmp_path / "logs")


def test_a_truncated_download_is_an_error(tmp_path: Path) -> None:
    source = write_files(tmp_path / "amazon", {"All_Beauty.json.gz": json_lines(*REVIEWS_2018) * 50})
    whole = (source / "All_Beauty.json.gz").read_bytes()
    (source / "All_Beauty.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"All_Beauty\.json\.gz: cannot be read .*truncated"):
        convert("amazon-reviews-2018", source, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
