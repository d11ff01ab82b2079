"""What a worker is asked to do and how its training ended, as plain values that travel. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.config import NextItemConfig
from models.ranking.config import RankingConfig
from sharding.config import CommunicationConfig, PlanConfig, TableConfig
from sharding.planning.planned_tables import PlannedTables
from trainer.config import CheckpointConfig, EvaluateConfig, TrainConfig
from trainer.storage.files import digest_of


@dataclass(frozen=True)
class Job:
    """A run as a worker sees it.

    plan_config: what the workers' devices are like; identity: the flat settings that a checkpoint must share to be continued,
    of which it may lack those `at_default`; placing: the plan of the tables, none until it is known how many workers there are.
    """

    run_dir: Path
    dataset_dir: Path
    seed: int
    model: NextItemConfig | RankingConfig
    tables: dict[str, TableConfig]
    train: TrainConfig
    checkpoint: CheckpointConfig
    evaluate: EvaluateConfig
    communication: CommunicationConfig
    plan_config: PlanConfig
    config: dict[str, Any]
    identity: dict[str, Any]
    at_default: frozenset[str]
    planned_tables: PlannedTables | None = None

    @property
    def checkpoints_dir(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def config_digest(self) -> str:
        return digest_of(self.config)


@dataclass(frozen=True)
class Outcome:
    """How training ended: "finished", "stopped" (on request) or "early" (no more improvement)."""

    reason: str
    step: int
    best_step: int | None
    best_value: float | None


@dataclass(frozen=True)
class Channel:
    """How the first rank talks to whoever launched it. `send` must not block; `stop_requested` is polled at every step."""

    send: Callable[[dict[str, Any]], None]
    stop_requested: Callable[[], bool]


SILENT = Channel(send=lambda event: None, stop_requested=lambda: False)
