"""Task ranking: model, stream and evaluation."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.features.catalogue import Catalogue
from models.features.request import ITEM_TABLE
from models.ranking.batch import RankingBatch
from models.ranking.config import RankingConfig, learned_labels
from models.ranking.interest import interest_of
from models.ranking.labels import Rates
from models.ranking.micro_batches import parts_of
from models.ranking.model import RankingModel
from models.ranking.reach import reach_of
from models.tables import TableSpec
from sharding.world import World
from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import Split
from trainer.data.stream.catalogue_reader import columns_for
from trainer.data.stream.day_examples import DayExamples, day_examples
from trainer.data.stream.examples import Examples
from trainer.data.stream.exchange.agreement import on_all
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.impressions import ImpressionStream, impression_examples
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import RowGroupReader
from trainer.errors import UserError
from trainer.evaluation.ranking.evaluate import RankingEvaluator, make_ranking_evaluator, write_scores
from trainer.evaluation.ranking.progressive import ProgressiveEvaluator
from trainer.global_batch.dynamic_ids import DynamicTables
from trainer.tasks.ranking.daily_training import DailyTraining
from trainer.tasks.task import META


class RankingTask:
    """The task ranking of one job; implements trainer.tasks.task.Task."""

    def __init__(
        self,
        job: Job,
        config: RankingConfig,
        manifest: Manifest,
        catalogue: Catalogue,
        daily: DailyTraining | None = None,
    ) -> None:
        self.job = job
        self.config = config
        self.manifest = manifest
        self.catalogue = catalogue
        self.daily = daily
        try:
            self.labels = learned_labels(config, manifest.labels["names"])
        except ValueError as error:
            raise UserError(str(error)) from None
        known = [feature.name for feature in catalogue.features if feature.table is not None]
        searched = config.searched_feature
        if searched is not None and searched not in known:
            raise UserError(
                f"model.interest.search.feature = {searched!r} is not a feature of items with ids that the model uses; there are: "
                f"{', '.join(known) or 'no such features'}"
            )

    def new_model(self, specs: list[TableSpec], tables_device: torch.device = META) -> RankingModel:
        """Return the model, with its tables on a device. Its biases start at the rates of the labels."""
        catalogue = self.catalogue
        config = self.config
        of_labels = self.manifest.labels
        rates = self.daily.rates if self.daily is not None else None
        if rates is None:
            positives = {name: counts["train"] for name, counts in of_labels["positives"].items()}
            rates = Rates(self.manifest.counts.train_events, positives)
        return RankingModel(
            config,
            self.labels,
            specs,
            tables_device,
            interest_of(self.job.config.tables[ITEM_TABLE].dim, config.max_history, config.encoder, config.interest),
            catalogue.features,
            catalogue.inputs,
            of_labels.get("negative_sampling_rate", 1.0),
            rates,
        )

    def stream(self, world: World) -> ImpressionStream:
        """Return this rank's training stream: users with their impressions, of all times or of one day after another.

        Collective. Raises UserError on all ranks if one of them finds that a file differs from the manifest.
        """
        job = self.job
        columns = replace(columns_for(self.catalogue), impressions=True)
        reader = RowGroupReader(job.dataset_dir, self.manifest, columns, retries=job.config.storage.policy)
        on_all(world, lambda: reader.check_files(world.rank, world.world_size))
        reach = reach_of(self.config)
        days = self.daily.days if self.daily is not None else None
        examples: Examples | DayExamples
        if days is None:
            examples = impression_examples(reader, self.manifest.counts.train_events, reach.attended)
        else:
            examples = day_examples(reader, days, reach.receptive)
        batches = GlobalBatches(
            examples,
            job.config.train.batch_size,
            None,
            job.config.run.seed,
            world.rank,
            world.world_size,
            job.config.train.streams,
        )
        calendar = days.calendar if days is not None else None
        return ImpressionStream(reader, batches, reach, self.catalogue, job.config.train.micro_batch_tokens, calendar)

    def complete_batch(self, batch: RankingBatch, position: Position, world: World) -> RankingBatch:
        """Return the batch as it is: a ranker needs nothing from the global batch."""
        return batch

    def parts_of(self, batch: RankingBatch) -> Iterator[RankingBatch]:
        """Yield the micro-batches of a batch."""
        return parts_of(batch)

    def evaluator(self, split: Split, world: World, dynamic: DynamicTables) -> RankingEvaluator:
        """Return the evaluator of a split, which scores its impressions."""
        return make_ranking_evaluator(
            self.job.dataset_dir,
            self.manifest,
            self.catalogue,
            split,
            self.job.config.evaluate,
            reach_of(self.config),
            world,
            dynamic,
            self.labels,
        )

    def next_day(self, world: World, dynamic: DynamicTables) -> ProgressiveEvaluator | None:
        """Return the evaluator of the next day. None unless train.days.evaluate_next is set."""
        settings = self.job.config.train.days
        if self.daily is None or settings is None or not settings.evaluate_next:
            return None
        return ProgressiveEvaluator(self.evaluator("validation", world, dynamic), self.daily.days)

    def write_parts(
        self,
        split: Split,
        model: RankingModel,
        world: World,
        dynamic: DynamicTables,
        folder: Path,
        on_batch: Callable[[int, int], None],
    ) -> None:
        """Evaluate a split, and write the scores of this rank's impressions to a file in `folder`. Collective."""
        write_scores(self.evaluator(split, world, dynamic), model, folder, on_batch)

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: a ranker has no state besides its model."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Do nothing: there is no state to restore."""
