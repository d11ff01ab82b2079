"""What negatives need to know of the global batch: between a batch and its look-up, ids are exchanged, drawn and corrected for.

A batch comes from the reader with the negatives that can be drawn ahead. `complete_batch` adds negatives drawn from the
targets of all ranks, and the draw probabilities by which scores are corrected. It runs in the main thread, because ranks
exchange their targets there, and before tables with dynamic ids assign rows, because it changes what is looked up.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models.batches.history_batch import HistoryBatch, with_negatives
from models.features.items import Catalogue
from models.objectives.config import ObjectiveConfig, SampledObjectiveConfig
from sharding.dynamic_ids.id_counts import count_ids, exchange_counts
from sharding.world import World
from trainer.data.stream.negatives import NegativeDraws
from trainer.data.stream.order import Position
from trainer.global_batch.item_frequency import TargetFrequency

STATE = "target_frequency."


class GlobalNegatives:
    """The negatives of a run, and the estimate of how often items are targets. For other objectives it changes nothing.

    train_events: (num_known,) of each id, where trainer.data.stream.negatives.needs_train_events.
    """

    def __init__(
        self, objective: ObjectiveConfig, catalogue: Catalogue, seed: int, train_events: np.ndarray | None = None
    ) -> None:
        self._catalogue = catalogue
        self.train_events = train_events
        self._own_counts: np.ndarray | None = None
        self._draws: NegativeDraws | None = None
        self._frequency: TargetFrequency | None = None
        if isinstance(objective, SampledObjectiveConfig):
            self._draws = NegativeDraws(objective, catalogue.num_known, seed, train_events)
            if objective.logq == "streaming":
                self._frequency = TargetFrequency(catalogue.num_known, objective.logq_rate)

    def take_target_counts(self, counts: np.ndarray) -> None:
        """Take this rank's counts of an epoch's targets (see target_counts); `complete_batch` sums all ranks'."""
        self._own_counts = counts

    def complete_batch(self, batch: HistoryBatch, position: Position, world: World) -> HistoryBatch:
        """The batch (on the CPU) with all that its objective needs. position: in the data, before the batch. Collective.

        Whether the step is then applied is not known yet, and makes no difference: what was observed stays.
        """
        if self._draws is None:
            return batch
        if self._own_counts is not None:
            counts = world.sum(torch.from_numpy(self._own_counts).to(world.device)).cpu().numpy()
            self._draws, self._own_counts = replace(self._draws, target_counts=counts), None
        draws = self._draws
        if draws.from_global_batch or self._frequency is not None:
            targets = exchange_counts(count_ids(batch.target_ids.numpy()), world)
            if self._frequency is not None:
                self._frequency.observe(targets)
            if draws.from_global_batch:
                batch = with_negatives(batch, draws.from_targets(position, targets), self._catalogue)
        if draws.objective.logq == "none":
            return batch
        share_of = None if self._frequency is None else self._frequency.share_of

        def log_q(ids: Tensor) -> Tensor:
            return torch.from_numpy(draws.log_q(ids.numpy(), share_of).astype(np.float32))

        return replace(batch, negative_log_q=log_q(batch.negative_ids), target_log_q=log_q(batch.target_ids))

    def tensors(self) -> dict[str, Tensor]:
        """The estimate by name, for a checkpoint: alike on all ranks, of shapes that follow from the dataset."""
        tensors = {} if self._frequency is None else self._frequency.tensors()
        return {STATE + name: tensor for name, tensor in tensors.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave; others are left alone."""
        if self._frequency is not None:
            self._frequency.load({n.removeprefix(STATE): t for n, t in tensors.items() if n.startswith(STATE)})
