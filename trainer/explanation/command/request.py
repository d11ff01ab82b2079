"""Request for explanations, as plain values. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

    from trainer.explanation.aggregates.groups import Grouping
    from trainer.explanation.aggregates.sums import AttentionSums

ALL = "all"
"""Name of all methods, for a comparison."""
METHODS = (
    "occlusion",
    "integrated_gradients_sampled",
    "integrated_gradients_mean",
    "integrated_gradients_zero",
    "gradient_x_input",
    "rollout",
    "attention",
)
"""Names of trainer.explanation.methods, which loads torch."""
SAMPLE = 100
"""Users that are explained by default."""
Removal = Literal["deleted", "masked", "replaced"]


@dataclass(frozen=True)
class Options:
    """Options of the command, as the user gives them."""

    users: str | None = None
    """File of users, or users separated by commas."""
    sample: int | None = None
    """Number of users drawn from the dataset. Without users and sample, SAMPLE."""
    seed: int = 0
    """Seed of all draws."""
    user: str | None = None
    """The user of a single pair."""
    item: str | None = None
    """The item of a single pair."""
    method: str | None = None
    """Name of a method, or "all"; None: the recommended one."""
    k: int = 1
    """Number of items that are explained to each user, the best first."""
    filter_viewed: bool | None = None
    """Whether items of the user's history are left out; None: yes."""
    at: str | int | None = None
    """Time of the requests; later events are left out. None: see `PlainHistories.asked`."""
    label: str | None = None
    """For rankers, the label that is explained; None: the only one."""
    removal: Removal = "deleted"
    """Meaning of removing an event."""
    shown: int = 12
    """Number of users on the page."""
    measure: bool = True
    """Whether the faithfulness of the methods is measured for the best item of each user."""


@dataclass(frozen=True)
class ExplainRequest:
    """A request as the workers receive it: checked, and with its users in one form."""

    parts: Path
    """Folder for the workers' files."""
    users: Path
    """Parquet file with the columns user and row (of the dataset)."""
    item: int | None
    """Id of the only item to explain; None: the best items of each user."""
    methods: tuple[str, ...]
    """Names of the methods, the one that the page shows first."""
    k: int
    """Number of items of each user."""
    filter_viewed: bool
    """Whether items of the user's history are left out."""
    at: int | None
    """Time of the requests in the unit of the dataset."""
    label: str | None
    """For rankers, the label that is explained."""
    removal: Removal
    """Meaning of removing an event."""
    seed: int
    """Seed of all draws."""
    measure: bool
    """Whether faithfulness is measured."""


@dataclass(frozen=True)
class Measurements:
    """Faithfulness of each of B users, as plain values."""

    values: "dict[tuple[str, str, str], np.ndarray]"
    """(B,) by order of events, metric, and what is removed (trainer.explanation.faithfulness.measure)."""
    lengths: "np.ndarray"
    """(B,) number of events of each history."""
    num_short: int
    """Users without enough events."""


@dataclass(frozen=True)
class PartResult:
    """Counts and sums of one worker, besides its files."""

    num_users: int
    """Users with an explanation."""
    num_without: int
    """Users without events before the request, or without an impression, of whom nothing is explained."""
    num_questions: int
    """Explained pairs of a user and an item."""
    num_rows: int
    """Rows of the values of events."""
    seconds: float
    """Duration, without the start of workers and the loading of the model."""
    attention: "AttentionSums | None"
    """Sums of attention over the users of this worker; None for a model without attention."""
    groupings: "tuple[Grouping, ...]"
    """The groupings of these sums."""
    measured: "Measurements | None"
    """Faithfulness of each user of this worker; None if it was not measured."""
