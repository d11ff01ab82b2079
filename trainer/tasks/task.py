"""What the loop, the checkpoints and the stages ask of a task; each task is one class that answers.

The loop itself knows no task: it trains any model with these few methods on any batches with these few fields.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.batches.jagged import JaggedLayout
from models.features.items import ItemRequest
from models.tables import EmbeddingTables, TableSpec
from sharding.world import World
from trainer.data.dataset.splits import Split
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.order import Position
from trainer.data.stream.shares import Step
from trainer.global_batch.dynamic_ids import DynamicTables


class Batch(Protocol):
    """One step's share of a rank."""

    @property
    def row_ids(self) -> Tensor:
        """(B,) int64, the ids of the examples."""

    @property
    def layout(self) -> JaggedLayout:
        """Of the events of histories."""

    @property
    def items(self) -> ItemRequest:
        """What has to be looked up."""

    @property
    def num_targets(self) -> int:
        """What the sum of losses is of, and divided by over all ranks."""

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""


class Model(Protocol):
    """A single-device model whose tables are sharded from outside."""

    @property
    def tables(self) -> EmbeddingTables: ...

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the dense weights, in a fixed order."""

    def look_up(self, request: ItemRequest) -> dict[str, Tensor]:
        """By table, the rows that a request asks for. Collective once the tables are sharded."""

    def loss(self, rows: Mapping[str, Tensor], batch: Any) -> Tensor:
        """The sum over all targets of the batch."""

    def modules(self) -> Iterator[nn.Module]:
        """As of any nn.Module."""

    def train(self, mode: bool = True) -> Any:
        """As of any nn.Module."""


class Stream(Protocol):
    """Training steps from any position on."""

    @property
    def batches(self) -> GlobalBatches: ...

    def steps(self, start: Position, num_epochs: int) -> Iterator[Step[Any]]:
        """Every step from `start` to the end of epoch `num_epochs - 1`; the same number on every rank."""


class Evaluator(Protocol):
    """One split of the dataset, ready to be evaluated again and again."""

    def mean_metrics(self, model: Any) -> dict[str, float]:
        """The metrics that early stopping looks at; the same numbers on every rank. Collective."""


class NextDay(Protocol):
    """What comes next in training by days, to be judged before it is trained."""

    def metrics(self, model: Any, day: int) -> dict[str, Any] | None:
        """What metrics.jsonl is told of the first day from `day` on that has impressions; none if there is no such. Collective."""


class Task(Protocol):
    """A task of one job on one dataset."""

    def new_model(self, specs: list[TableSpec]) -> nn.Module:
        """The model, with its tables on the meta device; it is a Model."""

    def stream(self, world: World) -> Stream:
        """This rank's training stream. Raises UserError if a file is not what the manifest says, on the rank that finds it."""

    def complete_batch(self, batch: Any, position: Position, world: World) -> Any:
        """A batch (on the CPU) with what it needs of the global batch. position: in the data, before it. Collective."""

    def parts_of(self, batch: Any) -> Iterator[Any]:
        """The pieces of a batch that are computed one after another."""

    def evaluator(self, split: Split, world: World, dynamic: DynamicTables) -> Evaluator:
        """For means during training."""

    def next_day(self, world: World, dynamic: DynamicTables) -> NextDay | None:
        """Where training goes by days, and each is wanted to be evaluated before it is trained."""

    def write_parts(
        self,
        split: Split,
        model: Any,
        world: World,
        dynamic: DynamicTables,
        folder: Path,
        on_batch: Callable[[int, int], None],
    ) -> None:
        """Evaluate a split as a stage of its own: this rank's part of what is merged later, as a file in `folder`. Collective."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the task besides the model: alike on all ranks."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
