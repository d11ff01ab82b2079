"""Next item: the event after each prefix of a history, out of the whole catalogue."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.batches.history_batch import HistoryBatch
from models.batches.micro_batches import parts_of
from models.config import NextItemConfig
from models.features.items import Catalogue
from models.next_item.model import NextItemModel
from models.tables import TableSpec
from sharding.world import World
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import Split
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.data.stream.catalogue_reader import columns_for
from trainer.data.stream.examples import examples_of
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.histories import TrainStream
from trainer.data.stream.negatives import needs_target_counts, needs_train_events
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import RowGroupReader
from trainer.data.stream.target_counts import count_targets
from trainer.evaluation.next_item.evaluate import Evaluator, make_evaluator, write_ranks
from trainer.global_batch.dynamic_ids import DynamicTables
from trainer.global_batch.negatives import GlobalNegatives
from trainer.job import Job


class NextItemTask:
    """See trainer.tasks.task.Task."""

    def __init__(self, job: Job, config: NextItemConfig, manifest: Manifest, catalogue: Catalogue) -> None:
        self.job, self.config, self.manifest, self.catalogue = job, config, manifest, catalogue
        train_events = None
        if needs_train_events(config.objective):
            train_events = np.concatenate(([0], read_vocabulary(job.dataset_dir, manifest).train_events))
        self.negatives = GlobalNegatives(config.objective, catalogue, job.seed, train_events)

    def new_model(self, specs: list[TableSpec]) -> NextItemModel:
        catalogue = self.catalogue
        return NextItemModel(self.config, specs, torch.device("meta"), catalogue.features, catalogue.inputs)

    def stream(self, world: World) -> TrainStream:
        job, train = self.job, self.job.train
        reader = RowGroupReader(job.dataset_dir, self.manifest, columns_for(self.catalogue))
        reader.check_files()
        with_lengths, masks = train.batch_tokens is not None, self.config.masks_items
        examples = examples_of(reader, self.config.max_history, train.long_histories, with_lengths, last_is_input=masks)
        if needs_target_counts(self.config.objective):
            windows, num_known = train.long_histories == "windows", self.catalogue.num_known
            items = RowGroupReader(job.dataset_dir, self.manifest)
            self.negatives.take_target_counts(count_targets(items, self.config, windows, num_known, world))
        batches = GlobalBatches(examples, train.batch_size, train.batch_tokens, job.seed, world.rank, world.world_size)
        return TrainStream(
            reader,
            batches,
            self.config,
            self.catalogue,
            train.micro_batch_tokens,
            train_events=self.negatives.train_events,
        )

    def complete_batch(self, batch: HistoryBatch, position: Position, world: World) -> HistoryBatch:
        return self.negatives.complete_batch(batch, position, world)

    def parts_of(self, batch: HistoryBatch) -> Iterator[HistoryBatch]:
        return parts_of(batch)

    def evaluator(self, split: Split, world: World, dynamic: DynamicTables) -> Evaluator:
        return make_evaluator(
            self.job.dataset_dir,
            self.manifest,
            self.catalogue,
            split,
            self.job.evaluate,
            self.config.max_history,
            world,
            dynamic,
            self.config.masks_items,
        )

    def next_day(self, world: World, dynamic: DynamicTables) -> None:
        return None

    def write_parts(
        self,
        split: Split,
        model: NextItemModel,
        world: World,
        dynamic: DynamicTables,
        folder: Path,
        on_batch: Callable[[int, int], None],
    ) -> None:
        vocabulary = read_vocabulary(self.job.dataset_dir, self.manifest, self.catalogue.scores_unknown)
        write_ranks(self.evaluator(split, world, dynamic), model, vocabulary, folder, on_batch)

    def tensors(self) -> dict[str, Tensor]:
        return self.negatives.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.negatives.load(tensors)
