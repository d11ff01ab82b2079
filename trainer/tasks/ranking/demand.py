"""Look-ups of a training step of a ranker. Imports no torch."""

from dataclasses import dataclass

from models.ranking.config import RankingConfig
from models.ranking.reach import reach_of
from trainer.config.train import TrainConfig
from trainer.tasks.demand import DatasetFacts, StepDemand, expected_distinct, histories_per_rank


@dataclass(frozen=True)
class RankingDemand:
    """The look-ups of a ranker."""

    config: RankingConfig
    """The settings of the model."""

    @property
    def looks_up_all_items(self) -> bool:
        """False: a ranker scores impressions, not the catalogue."""
        return False

    @property
    def assumed_history(self) -> str:
        """The assumption about the length of histories without a dataset."""
        receptive = reach_of(self.config).receptive
        return (
            f"every history is assumed to have the {receptive} events that a score depends on, as there is no dataset"
        )

    def of_step(self, train: TrainConfig, num_workers: int, num_items: int, facts: DatasetFacts | None) -> StepDemand:
        """Return the demand of a step. It gathers all events that scores depend on, which is more than one layer attends to."""
        longest = float(reach_of(self.config).receptive)
        mean_events = longest if facts is None else min(longest, facts.mean_events)
        histories = histories_per_rank(train, num_workers, mean_events)
        inputs = histories * mean_events
        candidates = histories * (1.0 if facts is None else facts.mean_candidates)
        return StepDemand(histories, inputs, candidates, expected_distinct(num_items, inputs + candidates))
