"""Job of a worker, outcome of its training, and its channel to the driver, as plain values. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sharding.planning.planned_tables import PlannedTables
from trainer.config.renamed import with_earlier_names
from trainer.config.run_config import RunConfig
from trainer.storage.files import digest_of


@dataclass(frozen=True)
class Job:
    """A run as a worker sees it: its config, and what the driver derives from it."""

    run_dir: Path  # absolute, as the next one, because workers run in folders of their own
    dataset_dir: Path
    config: RunConfig  # with the section [cluster], where the driver made the job
    identity: dict[str, Any]  # flat settings that a checkpoint must share to be resumed
    at_default: frozenset[str]  # those of them at their defaults: a checkpoint of an earlier version may lack them
    planned_tables: PlannedTables | None = None  # None until the number of workers is known
    evaluates_concurrently: bool = False  # whether other workers validate its checkpoints while it trains

    @property
    def checkpoints_dir(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.run_dir / "checkpoints"

    @property
    def config_values(self) -> dict[str, Any]:
        """Return the resolved config as plain values, as checkpoints and reports store it."""
        return self.config.model_dump(mode="json")

    @property
    def config_digest(self) -> str:
        """Return the digest of the resolved config, on which all ranks must agree."""
        return digest_of(with_earlier_names(self.config_values))


@dataclass(frozen=True)
class Outcome:
    """End of a training."""

    reason: str  # "finished", "stopped" (on request) or "early" (no more improvement)
    step: int  # the last one
    best_step: int | None  # the step of the best checkpoint
    best_value: float | None  # its early-stopping metric


class Note(Protocol):
    """Notes where a rank is, without waiting."""

    def __call__(self, phase: str, step: int, examples: int = 0) -> None:
        """Note the phase, the steps trained, and the examples trained since the start of the run."""


def _nowhere(phase: str, step: int, examples: int = 0) -> None:
    """Note nothing."""


@dataclass(frozen=True)
class Channel:
    """The connection of a rank to the driver."""

    send: Callable[[dict[str, Any]], None]  # must not block
    stop_requested: Callable[[], bool]  # polled at each step
    saves_requested: Callable[[], int] = lambda: 0  # number of requests for a checkpoint so far; polled at each step
    validations_made: Callable[[], int] = lambda: 0  # number of concurrent evaluations so far; polled at each step
    note: Note = _nowhere  # phase of this rank, the steps trained, and the data position
    measure: Callable[[dict[str, float]], None] | None = None  # receives measurements of this rank; None: not measured
    lap: Callable[[str], None] = lambda name: None  # called at the end of each part of the start of a training


SILENT = Channel(send=lambda event: None, stop_requested=lambda: False)
