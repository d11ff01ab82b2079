"""From a job to a sharded model with its optimizers, in the one order in which that works."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.features.items import Catalogue
from models.ranking.config import RankingConfig
from models.tables import TableSpec
from sharding.config import TableConfig
from sharding.planning.planned_tables import PlannedTables
from sharding.tables.apply_plan import shard_tables
from sharding.tables.optimizers import Optimizers
from sharding.world import World
from trainer.checkpoint import tensors as checkpoint_tensors
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.config import TrainConfig
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.catalogue_reader import read_catalogue
from trainer.errors import UserError
from trainer.global_batch.dynamic_ids import DynamicTables
from trainer.job import Job
from trainer.optim.dense import dense_optimizer
from trainer.optim.ema import WeightEma
from trainer.placement.loads import table_rows
from trainer.placement.plan import plan_tables
from trainer.storage.files import digest_of
from trainer.tasks.daily_training import DailyTraining
from trainer.tasks.next_item import NextItemTask
from trainer.tasks.ranking import RankingTask
from trainer.tasks.task import Task


@dataclass(frozen=True)
class Built:
    """model: the single-device object whose tables were replaced by sharded ones; placed: the wrapper that names its state.

    dynamic: the mappings of its tables with dynamic ids; what is looked up goes through them first. task: what is trained, and
    what a batch is given of the global one before that. grown_from: digests of its dataset before logs were appended.
    """

    model: Any
    sharded_model: nn.Module
    tables: dict[str, TableConfig]
    planned_tables: PlannedTables
    catalogue: Catalogue
    dynamic: DynamicTables
    task: Task
    grown_from: tuple[str, ...] = ()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds besides weights and optimizers: alike on all ranks."""
        return self.dynamic.tensors() | self.task.tensors()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.dynamic.load(tensors)
        self.task.load(tensors)


def build_model(job: Job, manifest: Manifest, world: World, by_day: DailyTraining | None = None) -> Built:
    """The model at its initial weights: a function of the seed, whatever the number of ranks or the plan.

    by_day: what training by days knows of them. Collective. Raises UserError if the dataset is for another task than the model, or
    if the ranks have different plans.
    """
    if manifest.task != job.model.task:
        raise UserError(
            f'dataset {job.dataset_dir} is for task "{manifest.task}", and model.task = "{job.model.task}"; datasets for ranking '
            "are those of logs with logs.labels: set model.task, or choose another dataset"
        )
    catalogue = read_catalogue(job.dataset_dir, manifest, job.tables, job.model)
    planned_tables = job.planned_tables
    if planned_tables is None or planned_tables.plan.world_size != world.world_size:
        planned_tables = plan_tables(job, manifest, world.world_size, "cuda" if world.device.type == "cuda" else "cpu")
    plan = planned_tables.plan
    # Before anything is placed: TorchRec would fail with what a rank sees of it, or wait for the others.
    agree_at_start(world, {"plan": digest_of(plan.values())})
    specs = [
        TableSpec(
            name,
            rows,
            job.tables[name].dim,
            plan.tables[name].sharding == "data_parallel",
            catalogue.bags_of_table(name),
            job.tables[name].pooling,
        )
        for name, rows in table_rows(job.tables, manifest, job.model.inputs).items()
    ]
    task = _task_of(job, manifest, catalogue, by_day)
    model: Any = task.new_model(specs)
    model.initialize(torch.Generator().manual_seed(job.seed))
    for part in (*model.children(), *model.tables.replicated):
        if part is not model.tables:
            part.to(world.device)
    tables = {spec.name: job.tables[spec.name] for spec in specs}
    sharded_model = shard_tables(model, tables, plan, world, job.seed, job.communication)
    dynamic = DynamicTables(tables, catalogue.features, job.seed, catalogue.inputs)
    return Built(model, sharded_model, tables, planned_tables, catalogue, dynamic, task, manifest.grown_from)


def agree_at_start(world: World, facts: dict[str, str]) -> None:
    """Compare named facts over all ranks. Collective. Raises UserError with the differences."""
    differences = world.disagreements(facts)
    if differences:
        raise UserError("the workers do not agree on what to train, so nothing was started: " + "; ".join(differences))


def _task_of(job: Job, manifest: Manifest, catalogue: Catalogue, by_day: DailyTraining | None) -> Task:
    match job.model:
        case RankingConfig() as config:
            return RankingTask(job, config, manifest, catalogue, by_day)
        case config:
            return NextItemTask(job, config, manifest, catalogue)


def load_checkpoint(
    found: StoredCheckpoint, built: Built, optimizers: Optimizers | None, averages: WeightEma | None = None
) -> None:
    """Load a verified checkpoint into the model, its other state and, if given, optimizers and averages. Collective.

    Where logs were appended since, the vocabularies may have grown, and tables with them: new rows are as they were built. Raises
    CheckpointError if it does not fit.
    """
    state = built.state()
    grew = found.manifest.days is not None or found.manifest.dataset_digest in built.grown_from
    checkpoint_tensors.load(found, built.sharded_model, built.tables, optimizers, state, averages, tables_grew=grew)
    built.load_state(state)


def load_to_use(found: StoredCheckpoint, built: Built) -> None:
    """Load what a checkpoint is evaluated by: its averages in the place of dense weights, if it has any. Collective."""
    decay = found.manifest.config["train"].get("ema_decay")
    averages = None if decay is None else WeightEma(built.sharded_model, built.tables, decay)
    load_checkpoint(found, built, None, averages)
    if averages is not None:
        averages.apply()


def build_optimizers(built: Built, config: TrainConfig) -> Optimizers:
    """The optimizers of the tables and the configured dense one."""
    return Optimizers(
        built.sharded_model,
        lambda parameters: dense_optimizer(parameters, config),
        built.tables,
        built.planned_tables.plan,
        config.schedule_tables,
    )
