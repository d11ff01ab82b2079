"""Request for recommendations, as plain values. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

OnUnknown = Literal["raise", "warn", "skip"]


@dataclass(frozen=True)
class Options:
    """Options of the command, as the user gives them."""

    k: int = 10
    """Number of items per user."""
    users: str = "all"
    """File of users, or "all" users of the dataset."""
    items: str | None = None
    """File of the only items to recommend; None: all. With `item_to_item` the items to compare with all."""
    item_to_item: bool = False
    """Whether similar items of items are written instead of items for users."""
    filter_viewed: bool | None = None
    """Whether items of the user's history are left out; None: for next_item they are, for ranking not."""
    on_unknown: OnUnknown = "raise"
    """Reaction to users or items that the dataset does not have."""
    at: str | int | None = None
    """Time of the requests; later events are left out. None: see `PlainHistories.asked`."""
    labels: dict[str, float] = field(default_factory=dict)
    """For ranking: weight of each label in the score. Empty: the only label."""


@dataclass(frozen=True)
class RecommendRequest:
    """A request as the workers receive it: checked, and with its files in one form."""

    parts: Path
    """Folder for the workers' files."""
    k: int
    """Number of items per user."""
    filter_viewed: bool
    """Whether items of the user's history are left out."""
    item_to_item: bool
    """Whether similar items are written."""
    at: int | None
    """Time of the requests in the unit of the dataset."""
    weights: tuple[float, ...] | None
    """For ranking: weight of each label that the model predicts."""
    users: Path | None = None
    """Parquet file with the columns user and row (of the dataset; -1 for a user without a history); None: all users."""
    items: Path | None = None
    """Parquet file of known items, each once, with the columns of the logs; None: all items."""


@dataclass(frozen=True)
class PartCounts:
    """Counts of one worker's part."""

    num_owners: int = 0
    """Users, or with `item_to_item` items, with a list."""
    num_popular: int = 0
    """Users without a history, who got popular items."""
    num_rows: int = 0
    """Rows of the file."""
    seconds: float = 0.0
    """Duration, without the start of workers and the loading of the model."""
