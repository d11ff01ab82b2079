"""Look-ups of a training step of a next-item model. Imports no torch."""

from dataclasses import dataclass

import numpy as np

from models.config import NextItemConfig
from models.objectives.config import FullSoftmaxConfig, InBatchNegatives, SampledObjectiveConfig
from trainer.config.train import TrainConfig
from trainer.data.stream.stochastic_length import expected_lengths, shortened_length
from trainer.tasks.demand import DatasetFacts, StepDemand, expected_distinct, histories_per_rank


@dataclass(frozen=True)
class NextItemDemand:
    """The look-ups of a next-item model."""

    config: NextItemConfig
    """The settings of the model."""

    @property
    def looks_up_all_items(self) -> bool:
        """True for a softmax over the whole catalogue."""
        return isinstance(self.config.objective, FullSoftmaxConfig)

    @property
    def assumed_history(self) -> str:
        """The assumption about the length of histories without a dataset."""
        longest = self.config.max_history
        return f"every history is assumed to have model.max_history = {longest} events, as there is no dataset"

    def of_step(self, train: TrainConfig, num_workers: int, num_items: int, facts: DatasetFacts | None) -> StepDemand:
        """Return the demand of a step. The last event of a history is a target only, so it is no input."""
        longest = float(self.config.max_history + 1)
        mean_events = longest if facts is None else min(longest, facts.mean_events)
        num_inputs = mean_events - 1
        histories = histories_per_rank(train, num_workers, num_inputs)
        if self.config.stochastic_length is not None:
            shortened = shortened_length(self.config.max_history, self.config.stochastic_length)
            num_inputs = float(expected_lengths(np.asarray([num_inputs]), shortened)[0])
            mean_events = num_inputs + 1
        items = float(num_items)
        objective = self.config.objective
        if isinstance(objective, SampledObjectiveConfig):
            # In-batch negatives are targets of the rank's own share, which are looked up anyway.
            num_negatives = 0 if isinstance(objective.negatives, InBatchNegatives) else objective.num_negatives
            items = expected_distinct(num_items, histories * mean_events + num_negatives)
        elif (workers := train.catalogue_group(num_workers)) > 1:
            # Its share of the catalogue, and those of the other items that its histories hold.
            share = num_items / workers
            items = share + (1.0 - 1.0 / workers) * expected_distinct(num_items, histories * max(0.0, num_inputs))
        return StepDemand(histories, histories * max(0.0, num_inputs), 0.0, items)
