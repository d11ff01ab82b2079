"""The public sets by name, and the conversion of one: find its files, check the output folder, write."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainer.data.public_sets import amazon, kuairand, movielens, taobao, yambda
from trainer.data.public_sets.output import Conversion, OnRows, read_finished, write
from trainer.data.public_sets.source import SourceFolder
from trainer.data.public_sets.tables import Table
from trainer.errors import UserError


@dataclass(frozen=True)
class PublicSet:
    """A public set that can be converted."""

    # Files that the source folder must contain, as text for messages.
    layout: str
    # Finds the files of the set; they are read when its tables are written.
    read: Callable[[SourceFolder], list[Table]]


_MOVIELENS_CSV = PublicSet("ratings.csv and movies.csv", movielens.read_comma_separated)
_KUAIRAND_LAYOUT = (
    "log_standard_*.csv, log_random_*.csv, user_features_*.csv and video_features_basic_*.csv of one version "
    "(the archive has them in data/)"
)
_AMAZON_LAYOUT = "{}, and for item features meta_CATEGORY.{}, packed or not"

SETS: dict[str, PublicSet] = {
    "movielens-100k": PublicSet("u.data, u.item and u.user", movielens.read_100k),
    "movielens-1m": PublicSet(
        "ratings.dat, movies.dat and users.dat",
        partial(movielens.read_double_colons, encoding="latin-1", with_users=True),
    ),
    "movielens-10m": PublicSet(
        "ratings.dat and movies.dat", partial(movielens.read_double_colons, encoding="utf8", with_users=False)
    ),
    "movielens-20m": _MOVIELENS_CSV,
    "movielens-25m": _MOVIELENS_CSV,
    "movielens-32m": _MOVIELENS_CSV,
    "amazon-reviews-2014": PublicSet(
        _AMAZON_LAYOUT.format("reviews_CATEGORY.json.gz or ratings_CATEGORY.csv", "json.gz"),
        partial(amazon.read, edition=amazon.E2014),
    ),
    "amazon-reviews-2018": PublicSet(
        _AMAZON_LAYOUT.format("CATEGORY.json.gz or CATEGORY.csv", "json.gz"),
        partial(amazon.read, edition=amazon.E2018),
    ),
    "amazon-reviews-2023": PublicSet(
        _AMAZON_LAYOUT.format("CATEGORY.jsonl.gz or CATEGORY.csv", "jsonl.gz"),
        partial(amazon.read, edition=amazon.E2023),
    ),
    "kuairand": PublicSet(_KUAIRAND_LAYOUT, kuairand.read),
    "kuairand-valtest": PublicSet(
        "val.parquet, test.parquet, user_sequences.parquet, user_features.parquet and video_features_basic_pure.csv",
        kuairand.read_valtest,
    ),
    "taobao": PublicSet("UserBehavior.csv", taobao.read),
    "yambda": PublicSet(
        "multi_event.parquet (or listens.parquet, likes.parquet and so on) from flat/, and for item features "
        "artist_item_mapping.parquet and album_item_mapping.parquet",
        yambda.read,
    ),
}


def convert(name: str, source: Path, folder: Path, on_rows: OnRows | None = None) -> Conversion:
    """Write the set `name`, downloaded into `source`, into `folder` as event logs.

    A folder with the same finished conversion is left unchanged, even if `source` no longer exists.

    Args:
        name: name of the set.
        source: folder of the downloaded files.
        folder: output folder.
        on_rows: called with the name of a table and its rows so far.

    Raises:
        UserError: for an unknown name, a missing or malformed file, and a folder that contains anything else.
    """
    public_set = _find(name)
    finished = read_finished(folder, name)
    if finished is not None and not source.exists():
        return finished
    files = SourceFolder(name, source, public_set.layout)
    tables = public_set.read(files)
    if finished is None:
        return write(folder, name, files.sizes, tables, on_rows)
    if finished.source != files.sizes:
        changed = sorted(dict(finished.source.items() ^ files.sizes.items()))
        raise UserError(
            f"{folder}: was converted from other files than those in {source} now (they differ in {', '.join(changed)}); "
            "choose another folder, or delete this one to convert again"
        )
    return finished


def _find(name: str) -> PublicSet:
    if name in SETS:
        return SETS[name]
    nearest = difflib.get_close_matches(name, SETS, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise UserError(f"{name}: no such public set; {hint}the sets are {', '.join(SETS)}")
