"""Negatives that depend on the global batch, and the probabilities for the logQ correction.

A batch comes from the reader with the negatives that can be drawn ahead. `complete_batch` adds negatives drawn from the targets of
all ranks, and the draw probabilities by which scores are corrected. It runs in the main thread, because ranks exchange their
targets there, and before tables with dynamic ids assign rows, because it adds look-ups.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models.batches.history_batch import HistoryBatch, with_negatives
from models.features.catalogue import Catalogue
from models.objectives.config import ObjectiveConfig, SampledObjectiveConfig
from sharding.dynamic_ids.id_counts import count_ids, exchange_counts
from sharding.world import ALONE, World
from trainer.data.stream.negatives import NegativeDraws
from trainer.data.stream.order import Position
from trainer.global_batch.item_frequency import TargetFrequency

STATE = "target_frequency."


class GlobalNegatives:
    """The negatives of a run, and the estimate of how often items are targets. Without a sampled objective nothing is changed.

    train_events: The training events of each id, (num_known,), if trainer.data.stream.negatives.needs_train_events.
    world: All ranks, over which the estimate is divided. Creating it is collective.
    """

    def __init__(
        self,
        objective: ObjectiveConfig,
        catalogue: Catalogue,
        seed: int,
        train_events: np.ndarray | None = None,
        world: World = ALONE,
    ) -> None:
        self._catalogue = catalogue
        self.train_events = train_events
        self._own_counts: np.ndarray | None = None
        self._draws: NegativeDraws | None = None
        self._frequency: TargetFrequency | None = None
        if isinstance(objective, SampledObjectiveConfig):
            self._draws = NegativeDraws(objective, catalogue.num_known, seed, train_events)
            if objective.logq == "streaming":
                self._frequency = TargetFrequency(catalogue.num_known, objective.logq_rate, world.on_cpu())

    def take_target_counts(self, counts: np.ndarray) -> None:
        """Keep this rank's counts of an epoch's targets (see target_counts). `complete_batch` sums them over all ranks."""
        self._own_counts = counts

    def complete_batch(self, batch: HistoryBatch, position: Position, world: World) -> HistoryBatch:
        """Return the batch, on the CPU, with everything that its objective needs. Collective.

        The estimate of frequencies is updated even if the step is not applied.

        Args:
            batch: This rank's share.
            position: The data position before the batch.
            world: All ranks.
        """
        if self._draws is None:
            return batch
        if self._own_counts is not None:
            counts = world.sum(torch.from_numpy(self._own_counts).to(world.device)).cpu().numpy()
            self._draws = replace(self._draws, target_counts=counts)
            self._own_counts = None
        draws = self._draws
        own_targets = count_ids(batch.target_ids.numpy())
        if draws.from_global_batch:
            targets = exchange_counts(own_targets, world)
            batch = with_negatives(batch, draws.from_targets(position, targets), self._catalogue)
        if draws.objective.logq == "none":
            return batch
        corrected = torch.cat((batch.negative_ids, batch.target_ids)).numpy()
        shares = None if self._frequency is None else self._frequency.observe(own_targets, corrected)
        log_q = torch.from_numpy(draws.log_q(corrected, shares).astype(np.float32))
        of_negatives, of_targets = log_q.split([batch.negative_ids.numel(), batch.target_ids.numel()])
        return replace(batch, negative_log_q=of_negatives, target_log_q=of_targets)

    def tensors(self) -> dict[str, Tensor]:
        """Return the estimate by name, for a checkpoint, divided over ranks. The dataset determines its shapes. Collective."""
        tensors = {} if self._frequency is None else self._frequency.tensors()
        return {STATE + name: tensor for name, tensor in tensors.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned. Other tensors are ignored. Collective."""
        if self._frequency is not None:
            self._frequency.load({n.removeprefix(STATE): t for n, t in tensors.items() if n.startswith(STATE)})
