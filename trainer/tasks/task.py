"""Protocol of a task, for the loop, the checkpoints and the stages. Each task is one class that implements it.

The loop itself knows no task: it trains any model with these few methods on any batches with these few fields.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.batches.jagged import JaggedLayout
from models.features.request import ItemRequest
from models.tables import NOTHING_SENT, EmbeddingTables, SentRequest, TableSpec
from sharding.world import World
from trainer.data.dataset.splits import Split
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.order import Position
from trainer.data.stream.shares import Step
from trainer.global_batch.dynamic_ids import DynamicTables

META = torch.device("meta")  # of tables that are sharded later: nothing is allocated

OnBatch = Callable[[int, int], None]
"""Progress of an evaluation: called after each batch with the number of batches done, and in total."""


class Batch(Protocol):
    """One step's share of a rank."""

    @property
    def row_ids(self) -> Tensor:
        """The ids of the examples, (B,) int64."""

    @property
    def layout(self) -> JaggedLayout:
        """The layout of the events of histories."""

    @property
    def items(self) -> ItemRequest:
        """The look-ups of the batch."""

    @property
    def num_targets(self) -> int:
        """The number of targets. The sum of losses is divided by their number on all ranks."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""


class Model(Protocol):
    """A single-device model. Its tables are sharded from outside."""

    @property
    def tables(self) -> EmbeddingTables:
        """The tables of the model."""

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the dense weights, in a fixed order."""

    def look_up(self, request: ItemRequest, sent: Mapping[str, SentRequest] = NOTHING_SENT) -> dict[str, Tensor]:
        """Return the rows of a request by table. Collective once the tables are sharded.

        sent: What was sent of the request before, by name of the collection.
        """

    def loss(self, rows: Mapping[str, Tensor], batch: Any) -> Tensor:
        """Return the sum of losses over all targets of the batch."""

    def modules(self) -> Iterator[nn.Module]:
        """Yield all modules, as any nn.Module does."""

    def train(self, mode: bool = True) -> Any:
        """Set training or evaluation mode, as any nn.Module does."""


class Stream(Protocol):
    """The training steps of one rank, from any position."""

    @property
    def batches(self) -> GlobalBatches:
        """The global batches."""

    def steps(self, start: Position, num_epochs: int) -> Iterator[Step[Any]]:
        """Yield every step from `start` to the end of epoch `num_epochs - 1`; the same number on every rank."""

    def read_ahead(self, start: Position, num_epochs: int) -> AbstractContextManager[Iterable[Step[Any]]]:
        """Return the same steps, read in the background while they are used.

        If ranks exchange examples, each `next` is collective.
        """


class Evaluator(Protocol):
    """One split of the dataset, which can be evaluated any number of times."""

    def mean_metrics(self, model: Any, on_batch: OnBatch) -> dict[str, float]:
        """Return the metrics that early stopping can use, the same on every rank. Collective."""


class NextDay(Protocol):
    """Evaluation of the next day in daily training, before it is trained."""

    def metrics(self, model: Any, day: int, on_batch: OnBatch) -> dict[str, Any] | None:
        """Evaluate the first day from `day` on that has impressions, and return its values for metrics.jsonl. Collective.

        Returns None if there is no such day.
        """


class Task(Protocol):
    """A task of one job on one dataset."""

    def new_model(self, specs: list[TableSpec], tables_device: torch.device = META) -> nn.Module:
        """Return the model, a `Model`, with its tables on a device: the meta device if they are sharded later."""

    def stream(self, world: World) -> Stream:
        """Return this rank's training stream. Collective.

        Raises UserError on all ranks if one of them finds that a file differs from the manifest.
        """

    def complete_batch(self, batch: Any, position: Position, world: World) -> Any:
        """Return a batch, on the CPU, with what it needs from the global batch. Collective.

        position: The data position before the batch.
        """

    def parts_of(self, batch: Any) -> Iterator[Any]:
        """Yield the micro-batches of a batch."""

    def evaluator(self, split: Split, world: World, dynamic: DynamicTables) -> Evaluator:
        """Return the evaluator of a split, for means during training."""

    def next_day(self, world: World, dynamic: DynamicTables) -> NextDay | None:
        """Return the evaluator of the next day. None unless train.days.evaluate_next is set."""

    def write_parts(
        self,
        split: Split,
        model: Any,
        world: World,
        dynamic: DynamicTables,
        folder: Path,
        on_batch: OnBatch,
    ) -> None:
        """Evaluate a split as a stage, and write this rank's partial results to a file in `folder`. Collective.

        Args:
            split: The split.
            model: The model to evaluate.
            world: All ranks.
            dynamic: The mappings of its tables with dynamic ids.
            folder: The folder of the partial results.
            on_batch: Called after each batch.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint that belong to the task. Collective."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned. Collective."""
