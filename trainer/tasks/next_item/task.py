"""Task next_item: model, stream, global negatives and evaluation."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.batches.history_batch import HistoryBatch
from models.batches.micro_batches import parts_of
from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from models.next_item.model import NextItemModel
from models.tables import TableSpec
from sharding.world import ALONE, World
from trainer.config.job import Job
from trainer.costing.next_item import costs_by_length
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import Split
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.data.stream.catalogue_reader import columns_for
from trainer.data.stream.examples import Examples, examples_of, typical_events
from trainer.data.stream.exchange.agreement import on_all
from trainer.data.stream.exchange.lengths import ExampleLengths, divided_lengths, read_own_ends
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.histories import TrainStream
from trainer.data.stream.negatives import needs_target_counts, needs_train_events
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import RowGroupReader
from trainer.data.stream.target_counts import count_targets
from trainer.evaluation.next_item.baselines.build import Baselines, build_baselines
from trainer.evaluation.next_item.evaluate import Evaluator, make_evaluator, write_user_rows
from trainer.global_batch.catalogue_groups import CatalogueGroup
from trainer.global_batch.dynamic_ids import DynamicTables
from trainer.global_batch.negatives import GlobalNegatives
from trainer.tasks.task import META


class NextItemTask:
    """The task next_item of one job; implements trainer.tasks.task.Task."""

    def __init__(
        self, job: Job, config: NextItemConfig, manifest: Manifest, catalogue: Catalogue, world: World = ALONE
    ) -> None:
        self.job = job
        self.config = config
        self.manifest = manifest
        self.catalogue = catalogue
        train_events = None
        if needs_train_events(config.objective):
            train_events = np.concatenate(([0], read_vocabulary(job.dataset_dir, manifest).train_events))
        self.catalogue_group: CatalogueGroup | None = None
        self.negatives = GlobalNegatives(config.objective, catalogue, job.config.run.seed, train_events, world)

    def new_model(self, specs: list[TableSpec], tables_device: torch.device = META) -> NextItemModel:
        """Return the model, with its tables on a device."""
        catalogue = self.catalogue
        return NextItemModel(self.config, specs, tables_device, catalogue.features, catalogue.inputs)

    def stream(self, world: World) -> TrainStream:
        """Return this rank's training stream of histories or windows of them. Collective.

        Raises UserError on all ranks if one of them finds that a file differs from the manifest.
        """
        job = self.job
        train = job.config.train
        reader = RowGroupReader(
            job.dataset_dir, self.manifest, columns_for(self.catalogue), retries=job.config.storage.policy
        )
        on_all(world, lambda: reader.check_files(world.rank, world.world_size))
        examples, lengths = self._examples(reader, world)
        if needs_target_counts(self.config.objective):
            windows = train.long_histories == "windows"
            items = RowGroupReader(job.dataset_dir, self.manifest, retries=job.config.storage.policy)
            counts = on_all(world, lambda: count_targets(items, self.config, windows, self.catalogue.num_known, world))
            self.negatives.take_target_counts(counts)
        batches = GlobalBatches(
            examples,
            train.batch_size,
            train.batch_tokens,
            job.config.run.seed,
            world.rank,
            world.world_size,
            train.streams,
            lengths,
            costs_by_length(job.config, self.config, self.manifest.counts.num_items)
            if train.deal_by == "flops"
            else None,
            train.deal_by != "count",
        )
        if (group := train.catalogue_group(world.world_size)) > 1:
            self.catalogue_group = CatalogueGroup(group, self.catalogue.num_known, world)
        return TrainStream(
            reader,
            batches,
            self.config,
            self.catalogue,
            train.micro_batch_tokens,
            train_events=self.negatives.train_events,
            share=None if self.catalogue_group is None else self.catalogue_group.share,
        )

    def _examples(self, reader: RowGroupReader, world: World) -> tuple[Examples, ExampleLengths | None]:
        """Return the examples, and their lengths if the ranks divide them and exchange examples. Collective."""
        train = self.job.config.train
        longest = self.config.max_history
        last_is_input = self.config.masks_items
        windows = train.long_histories == "windows"
        needs_lengths = train.batch_tokens is not None or (world.world_size > 1 and train.deal_by != "count")
        if world.world_size == 1 or not (windows or needs_lengths):
            return examples_of(reader, longest, train.long_histories, needs_lengths, last_is_input), None
        ends = on_all(world, lambda: read_own_ends(reader, world, last_is_input))
        sizes, lengths = divided_lengths(reader, ends, longest, windows, world.on_cpu())
        examples = Examples(
            sizes,
            reader.first_rows,
            longest,
            typical_events(reader, longest),
            windows=windows,
            read_ends=lambda group: reader.cuts(group)[0] + int(last_is_input),
        )
        return examples, lengths if needs_lengths else None

    def complete_batch(self, batch: HistoryBatch, position: Position, world: World) -> HistoryBatch:
        """Return the batch with what it needs of the global batch. Collective.

        These are negatives and the probabilities for the logQ correction, or the targets of the ranks that divide the catalogue.
        """
        if self.catalogue_group is not None:
            return self.catalogue_group.complete_batch(batch)
        return self.negatives.complete_batch(batch, position, world)

    def parts_of(self, batch: HistoryBatch) -> Iterator[HistoryBatch]:
        """Yield the micro-batches of a batch."""
        return parts_of(batch)

    def evaluator(self, split: Split, world: World, dynamic: DynamicTables) -> Evaluator:
        """Return the evaluator of a split, which ranks the full catalogue."""
        return make_evaluator(
            self.job.dataset_dir,
            self.manifest,
            self.catalogue,
            split,
            self.job.config.evaluate,
            self.config.max_history,
            world,
            dynamic,
            self.config.masks_items,
        )

    def next_day(self, world: World, dynamic: DynamicTables) -> None:
        """Return None: daily training is for impressions."""

    def write_parts(
        self,
        split: Split,
        model: NextItemModel,
        world: World,
        dynamic: DynamicTables,
        folder: Path,
        on_batch: Callable[[int, int], None],
    ) -> None:
        """Evaluate a split, and write the places of this rank's targets to a file in `folder`. Collective."""
        baselines = self._baselines(world)
        write_user_rows(self.evaluator(split, world, dynamic), model, baselines, folder, on_batch)

    def _baselines(self, world: World) -> Baselines:
        """Return the baselines of the settings. Collective."""
        unknown = self.catalogue.scores_unknown
        train_events = read_vocabulary(self.job.dataset_dir, self.manifest, unknown).train_events
        evaluate = self.job.config.evaluate
        return build_baselines(self.job.dataset_dir, self.manifest, train_events, self.config, evaluate, unknown, world)

    def tensors(self) -> dict[str, Tensor]:
        """Return the estimate of item frequencies, if the objective has one. Collective."""
        return self.negatives.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        self.negatives.load(tensors)
