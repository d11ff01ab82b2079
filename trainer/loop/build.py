"""Construction of a sharded model, its optimizers and its stream from a job. The order of the steps matters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models import devices
from models.features.catalogue import Catalogue
from models.ranking.config import RankingConfig
from models.tables import TableSpec
from sharding.config import TableConfig
from sharding.planning.planned_tables import PlannedTables
from sharding.tables.apply_plan import shard_tables
from sharding.tables.optimizers import Optimizers
from sharding.world import World
from trainer.checkpoint import tensors as checkpoint_tensors
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.config.job import Job
from trainer.config.train import TrainConfig
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.catalogue_reader import read_catalogue
from trainer.errors import UserError
from trainer.global_batch.dynamic_ids import DynamicTables
from trainer.loop.step import TrainStep
from trainer.loop.step_clock import StepClock
from trainer.optim.dense import dense_optimizer
from trainer.optim.ema import WeightEma
from trainer.optim.gradient_buckets import GradientBuckets
from trainer.placement.loads import table_rows
from trainer.placement.plan import plan_tables
from trainer.storage.files import digest_of
from trainer.tasks.next_item.task import NextItemTask
from trainer.tasks.ranking.daily_training import DailyTraining
from trainer.tasks.ranking.task import RankingTask
from trainer.tasks.task import Task


@dataclass(frozen=True)
class Built:
    """A model of one job, sharded over the ranks."""

    model: Any
    """The single-device model, with its tables replaced by sharded ones."""
    sharded_model: nn.Module
    """The wrapper that names the state of the model."""
    tables: dict[str, TableConfig]
    """Settings of its tables by name."""
    planned_tables: PlannedTables
    """The plan of its tables."""
    catalogue: Catalogue
    """The items."""
    dynamic: DynamicTables
    """The mappings of its tables with dynamic ids, which translate every request before the look-up."""
    task: Task
    """The task that it is trained for."""
    grown_from: tuple[str, ...] = ()
    """Digests of its dataset before logs were appended."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint besides weights and optimizers, as copies. Collective."""
        return self.dynamic.tensors() | self.task.tensors()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned. Collective."""
        self.dynamic.load(tensors)
        self.task.load(tensors)


def build_model(
    job: Job,
    manifest: Manifest,
    world: World,
    daily: DailyTraining | None = None,
    checkpoint: StoredCheckpoint | None = None,
) -> Built:
    """Return the model at its initial weights. They depend on the seed, not on the world size or the plan. Collective.

    Args:
        job: The run.
        manifest: The manifest of its dataset.
        world: All ranks.
        daily: The days of the dataset, in daily training.
        checkpoint: What the caller loads next. The weights of tables are left undefined if it replaces all of them.

    Raises:
        UserError: The dataset is for another task than the model, or the ranks have different plans.
    """
    check_task(job, manifest)
    catalogue = read_catalogue(job.dataset_dir, manifest, job.config.tables, job.config.model)
    planned_tables = job.planned_tables
    if planned_tables is None or planned_tables.plan.world_size != world.world_size:
        planned_tables = plan_tables(job, manifest, world.world_size, "cuda" if world.device.type == "cuda" else "cpu")
    plan = planned_tables.plan
    # Before anything is sharded: with different plans, TorchRec would fail with an obscure error, or hang.
    agree_at_start(world, {"plan": digest_of(plan.values())})
    specs = table_specs(job, manifest, catalogue, lambda name: plan.tables[name].sharding == "data_parallel")
    task = task_of(job, manifest, catalogue, world, daily)
    model: Any = task.new_model(specs)
    model.initialize(torch.Generator().manual_seed(job.config.run.seed))
    for part in (*model.children(), *model.tables.replicated):
        if part is not model.tables:
            part.to(world.device)
    tables = {spec.name: job.config.tables[spec.name] for spec in specs}
    replaced = checkpoint is not None and not has_grown(checkpoint, manifest.grown_from)
    seed = None if replaced else job.config.run.seed
    sharded_model = shard_tables(model, tables, plan, world, seed, job.config.communication)
    dynamic = DynamicTables(tables, catalogue.features, job.config.run.seed, catalogue.inputs, world)
    return Built(model, sharded_model, tables, planned_tables, catalogue, dynamic, task, manifest.grown_from)


def check_task(job: Job, manifest: Manifest) -> None:
    """Raise UserError if the dataset is for another task than the model."""
    if manifest.task != job.config.model.task:
        raise UserError(
            f'dataset {job.dataset_dir} is for task "{manifest.task}", and model.task = "{job.config.model.task}"; datasets for '
            "ranking come from logs with logs.labels: set model.task, or choose another dataset"
        )


def table_specs(
    job: Job, manifest: Manifest, catalogue: Catalogue, is_replicated: Callable[[str], bool]
) -> list[TableSpec]:
    """Return the tables of a model, in the order in which the model builds them.

    Args:
        job: The run.
        manifest: The manifest of its dataset.
        catalogue: The items.
        is_replicated: Whether every rank holds all rows of the table of a name.
    """
    return [
        TableSpec(
            name,
            rows,
            job.config.tables[name].dim,
            is_replicated(name),
            catalogue.bags_of_table(name),
            job.config.tables[name].pooling,
        )
        for name, rows in table_rows(job.config.tables, manifest, job.config.model.inputs).items()
    ]


def agree_at_start(world: World, facts: dict[str, str]) -> None:
    """Compare named facts of all ranks. Collective. Raises UserError with the differences."""
    differences = world.disagreements(facts)
    if differences:
        raise UserError("the workers do not agree on what to train, so nothing was started: " + "; ".join(differences))


def task_of(
    job: Job, manifest: Manifest, catalogue: Catalogue, world: World, daily: DailyTraining | None = None
) -> Task:
    """Return the task that the model of a job is trained for. Collective."""
    match job.config.model:
        case RankingConfig() as config:
            return RankingTask(job, config, manifest, catalogue, daily)
        case config:
            return NextItemTask(job, config, manifest, catalogue, world)


def load_checkpoint(
    checkpoint: StoredCheckpoint, built: Built, optimizers: Optimizers | None, ema: WeightEma | None = None
) -> None:
    """Load a verified checkpoint into the model, its other state and, if given, optimizers and weight EMA. Collective.

    If logs were appended since, vocabularies and their tables may have grown. New rows keep their initial values. Raises
    CheckpointError if the checkpoint does not fit.
    """
    state = built.state()
    grew = has_grown(checkpoint, built.grown_from)
    checkpoint_tensors.load(checkpoint, built.sharded_model, built.tables, optimizers, state, ema, tables_grew=grew)
    built.load_state(state)


def has_grown(checkpoint: StoredCheckpoint, grown_from: tuple[str, ...]) -> bool:
    """Return True if tables may have more rows than the checkpoint, since logs were appended to the dataset.

    grown_from: Digests of the dataset before logs were appended.
    """
    return checkpoint.manifest.days is not None or checkpoint.manifest.dataset_digest in grown_from


def load_for_evaluation(checkpoint: StoredCheckpoint, built: Built) -> None:
    """Load the weights with which a checkpoint is evaluated: the EMA of dense weights, if it has one. Collective."""
    decay = checkpoint.manifest.config["train"].get("ema_decay")
    ema = None if decay is None else WeightEma(built.sharded_model, built.tables, decay)
    load_checkpoint(checkpoint, built, None, ema)
    if ema is not None:
        ema.apply()


def build_optimizers(built: Built, config: TrainConfig) -> Optimizers:
    """Return the optimizers of the tables and the configured dense optimizer."""
    return Optimizers(
        built.sharded_model,
        lambda parameters: dense_optimizer(parameters, config),
        built.tables,
        built.planned_tables.plan,
        config.schedule_tables,
    )


def build_ema(job: Job, built: Built) -> WeightEma | None:
    """Return the moving average of the dense weights, or None if the run has none."""
    decay = job.config.train.ema_decay
    return None if decay is None else WeightEma(built.sharded_model, built.tables, decay)


def build_step(
    job: Job, built: Built, optimizers: Optimizers, ema: WeightEma | None, world: World, clock: StepClock
) -> TrainStep:
    """Return the step of a training, which trains the built model. Collective."""
    later = reads_later(optimizers, world)
    if later:
        optimizers.materialize_dense_state()
    return TrainStep(
        built.model,
        optimizers,
        world,
        job.config.run.seed,
        clock,
        built.task.parts_of,
        GradientBuckets(optimizers.dense_parameters, world),
        job.config.train.clip_norm,
        ema,
        job.config.train.precision,
        job.config.train.tf32,
        None if job.config.train.clip_norm is None else world.on_cpu(),
        later,
    )


def reads_later(optimizers: Optimizers, world: World) -> bool:
    """Return whether the host reads the result of a step after the next one was queued. Results do not depend on it.

    A CPU would gain nothing: it computes what it queues at once.
    """
    return optimizers.can_skip and not devices.is_host(world.device)
