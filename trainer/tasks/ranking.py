"""Ranking: what becomes of impressions, from the history before each."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.features.items import ITEM_TABLE, Catalogue
from models.ranking.batch import RankingBatch
from models.ranking.config import RankingConfig, learned_labels
from models.ranking.interest import interest_of
from models.ranking.labels import Rates
from models.ranking.micro_batches import parts_of
from models.ranking.model import RankingModel
from models.ranking.reach import reach_of
from models.tables import TableSpec
from sharding.world import World
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import Split
from trainer.data.stream.catalogue_reader import columns_for
from trainer.data.stream.day_examples import DayExamples, day_examples
from trainer.data.stream.examples import Examples
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.impressions import ImpressionStream, impression_examples
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import RowGroupReader
from trainer.errors import UserError
from trainer.evaluation.ranking.evaluate import RankingEvaluator, make_ranking_evaluator, write_scores
from trainer.evaluation.ranking.progressive import ProgressiveEvaluator
from trainer.global_batch.dynamic_ids import DynamicTables
from trainer.job import Job
from trainer.tasks.daily_training import DailyTraining


class RankingTask:
    """See trainer.tasks.task.Task."""

    def __init__(
        self,
        job: Job,
        config: RankingConfig,
        manifest: Manifest,
        catalogue: Catalogue,
        by_day: DailyTraining | None = None,
    ) -> None:
        self.job, self.config, self.manifest, self.catalogue, self.by_day = job, config, manifest, catalogue, by_day
        try:
            self.labels = learned_labels(config, manifest.labels["names"])
        except ValueError as error:
            raise UserError(str(error)) from None
        known = [feature.name for feature in catalogue.features if feature.table is not None]
        wanted = config.interest.search.feature
        if wanted is not None and wanted not in known:
            raise UserError(
                f"model.interest.search.feature = {wanted!r} is none of the items' features that have ids and that the model "
                f"is told; there are {', '.join(known) or 'none'}"
            )

    def new_model(self, specs: list[TableSpec]) -> RankingModel:
        catalogue, config, of_labels = self.catalogue, self.config, self.manifest.labels
        rates = self.by_day.rates if self.by_day is not None else None
        if rates is None:
            positives = {name: counts["train"] for name, counts in of_labels["positives"].items()}
            rates = Rates(self.manifest.counts.train_events, positives)
        return RankingModel(
            config,
            self.labels,
            specs,
            torch.device("meta"),
            interest_of(self.job.tables[ITEM_TABLE].dim, config.max_history, config.encoder, config.interest),
            catalogue.features,
            catalogue.inputs,
            of_labels.get("negative_sampling_rate", 1.0),
            rates,
        )

    def stream(self, world: World) -> ImpressionStream:
        job = self.job
        wanted = replace(columns_for(self.catalogue), impressions=True)
        reader = RowGroupReader(job.dataset_dir, self.manifest, wanted)
        reader.check_files()
        reach, days = reach_of(self.config), self.by_day.days if self.by_day is not None else None
        examples: Examples | DayExamples
        if days is None:
            examples = impression_examples(reader, self.manifest.counts.train_events, reach.attended)
        else:
            examples = day_examples(reader, days, reach.receptive)
        batches = GlobalBatches(examples, job.train.batch_size, None, job.seed, world.rank, world.world_size)
        calendar = days.calendar if days is not None else None
        return ImpressionStream(reader, batches, reach, self.catalogue, job.train.micro_batch_tokens, calendar)

    def complete_batch(self, batch: RankingBatch, position: Position, world: World) -> RankingBatch:
        return batch

    def parts_of(self, batch: RankingBatch) -> Iterator[RankingBatch]:
        return parts_of(batch)

    def evaluator(self, split: Split, world: World, dynamic: DynamicTables) -> RankingEvaluator:
        return make_ranking_evaluator(
            self.job.dataset_dir,
            self.manifest,
            self.catalogue,
            split,
            self.job.evaluate,
            reach_of(self.config),
            world,
            dynamic,
            self.labels,
        )

    def next_day(self, world: World, dynamic: DynamicTables) -> ProgressiveEvaluator | None:
        job, by_day = self.job, self.by_day
        if by_day is None or job.train.days is None or not job.train.days.evaluate_next:
            return None
        evaluator = self.evaluator("validation", world, dynamic)
        return ProgressiveEvaluator(evaluator, by_day.days)

    def write_parts(
        self,
        split: Split,
        model: RankingModel,
        world: World,
        dynamic: DynamicTables,
        folder: Path,
        on_batch: Callable[[int, int], None],
    ) -> None:
        write_scores(self.evaluator(split, world, dynamic), model, folder, on_batch)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        pass
