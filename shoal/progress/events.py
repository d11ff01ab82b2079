"""Events that report the progress of a command. A listener receives them in order, in the thread that called the command.

    def listener(event: shoal.Event) -> None:
        match event:
            case shoal.TrainingStep(step=step, loss=loss): ...
            case shoal.Stage(stage=stage, status="done"): ...

A listener should ignore events that it does not know: later versions may add some.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.loop.stragglers import straggler_text
from trainer.restart_log import recovery_text
from trainer.storage.objects.paths import path_of


@dataclass(frozen=True)
class Stage:
    """A stage of the run begins or ends."""

    stage: str  # "prepare", "train", or "evaluate/test", as in state.json
    status: Literal[
        "started", "done", "done before"
    ]  # "done before": the recorded result of an earlier command is used


@dataclass(frozen=True)
class Progress:
    """Progress of a stage, or of an evaluation during training. Steps of training send a TrainingStep instead."""

    stage: str  # "prepare", "evaluate", or "validate" for an evaluation during training
    done: int  # tasks of prepare, or batches of an evaluation
    total: int
    text: str  # the same for people


@dataclass(frozen=True)
class Message:
    """A line that the command prints."""

    text: str


@dataclass(frozen=True)
class WarningRaised:
    """Something that does not end the command and that the user should know."""

    text: str


@dataclass(frozen=True)
class Planned:
    """The embedding tables have been assigned to workers."""

    tables: dict[str, str]  # how each table is sharded, for example {"item": "row_wise"}


@dataclass(frozen=True)
class Resumed:
    """Training continues from a checkpoint."""

    step: int
    path: Path


@dataclass(frozen=True)
class Restarted:
    """Workers failed, and are started again. They continue from the newest checkpoint."""

    text: str  # rank, machine, phase and cause, for people
    cause: Literal["failure", "preemption", "resize"]


@dataclass(frozen=True)
class TrainingStep:
    """A step of training has ended. At most a few a second are sent; metrics.jsonl has the recorded ones."""

    step: int
    total_steps: int
    epoch: int  # from 0
    loss: float  # mean per target of the global batch
    events_per_second: float
    seconds_left: float  # estimate for the rest of training
    next_checkpoint: int  # step
    day: str | None = None  # in daily training


@dataclass(frozen=True)
class Validation:
    """The model was evaluated on validation events during training."""

    step: int
    metrics: dict[str, float]
    is_best: bool  # by the metric of early stopping


@dataclass(frozen=True)
class DayEvaluated:
    """In daily training, the model was evaluated on a day before it trained on that day."""

    step: int
    day: str
    metrics: dict[str, float]  # NaN where one is not defined, such as the auc of positives alone


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint has been committed."""

    step: int
    path: Path
    seconds: float  # that saving took


Event = (
    Stage
    | Progress
    | Message
    | WarningRaised
    | Planned
    | Resumed
    | Restarted
    | TrainingStep
    | Validation
    | DayEvaluated
    | CheckpointSaved
)

Listener = Callable[[Event], None]


def event_of(raw: dict[str, Any]) -> Event | None:
    """Return the typed form of an event of the driver or of a worker, or None if a listener has no use for it."""
    match raw["kind"]:
        case "stage":
            return Stage(raw["stage"], raw["status"])
        case "evaluate" | "validate" as stage:
            return Progress(stage, raw["done"], raw["total"], f"batch {raw['done']:,}/{raw['total']:,}")
        case "explain":
            return Progress("explain", raw["done"], raw["total"], f"{raw['owners']:,} users")
        case "recommend":
            return Progress("recommend", raw["done"], raw["total"], f"{raw['owners']:,} lists")
        case "contributions":
            return Progress("prune", raw["done"], raw["total"], f"evaluation {raw['done']:,}/{raw['total']:,}")
        case "phase":
            return Message(f"{raw['text']} ...")
        case "warning":
            return WarningRaised(raw["text"])
        case "straggler":
            return WarningRaised(straggler_text(raw))
        case "plan":
            return Planned(dict(raw["tables"]))
        case "restart":
            return Restarted(raw["text"], raw["cause"])
        case "recovered":
            return Message(recovery_text(raw["seconds"], raw["steps"], raw["rows"]))
        case "resumed":
            return Resumed(raw["step"], path_of(raw["path"]))
        case "train":
            names = TrainingStep.__dataclass_fields__
            return TrainingStep(**{name: raw[name] for name in names if name in raw})
        case "validation":
            return Validation(raw["step"], dict(raw["metrics"]), raw["best"]["step"] == raw["step"])
        case "progressive":
            return DayEvaluated(raw["step"], str(raw["begins"]), dict(raw["metrics"]))
        case "checkpoint":
            return CheckpointSaved(raw["step"], path_of(raw["path"]), raw["seconds"])
        case _:  # such as "resources", which is for cost models
            return None
