"""Jobs of a run, as each worker runs them: training; evaluation, recommendations, explanations and contributions of a checkpoint.

The driver only refers to them. Torch and TorchRec are imported inside the functions, because importing them would delay the
driver's first output by seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.checkpoint.folder import StoredCheckpoint
from trainer.config.job import Channel, Job, Outcome
from trainer.data.dataset.manifest import read_manifest
from trainer.data.dataset.splits import Split
from trainer.errors import CheckpointError
from trainer.explanation.command.request import ExplainRequest, PartResult
from trainer.pruning.choice import Measured
from trainer.recommend.request import PartCounts, RecommendRequest

if TYPE_CHECKING:
    from sharding.world import World
    from trainer.inference.trained_model import TrainedModel
    from trainer.loop.build import Built


def train(job: Job, world: World, channel: Channel) -> Outcome:
    """Train to the end, or until asked to stop, and report peak memory and time."""
    from trainer.loop.memory import forget_peak, peak_bytes
    from trainer.loop.train import Training

    forget_peak(world.device)
    _announce("train: building the model and sharding its tables", world, channel)
    training = Training(job, world, channel)
    started = time.monotonic()
    outcome = training.run()
    used = {"peak_bytes": peak_bytes(world.device), "seconds": time.monotonic() - started}
    channel.send({"kind": "resources", "rank": world.rank, **used})
    return outcome


@dataclass(frozen=True)
class EvaluationJob:
    """Evaluation of a checkpoint on one or more splits."""

    job: Job
    checkpoint: StoredCheckpoint
    # Per split, the folder for the workers' partial results.
    parts: dict[Split, Path]
    # Whether the dataset is another one. The driver has compared its vocabularies with those of the checkpoint's dataset.
    other_data: bool = False


def evaluate(evaluation: EvaluationJob, world: World, channel: Channel) -> None:
    """Evaluate a checkpoint, and write partial results. Raises CheckpointError if it was trained on another dataset."""
    from trainer.loop.compiled_kernels import set_kernels_of_evaluation

    def on_batch(done: int, total: int) -> None:
        channel.note("evaluation", done)
        if world.is_first:
            channel.send({"kind": "evaluate", "done": done, "total": total})

    built = _loaded(evaluation.job, evaluation.checkpoint, "evaluate", world, channel, evaluation.other_data)
    set_kernels_of_evaluation(built, evaluation.job.config.evaluate, world)
    for split, parts in evaluation.parts.items():
        built.task.write_parts(split, built.model, world, built.dynamic, parts, on_batch)


@dataclass(frozen=True)
class ValidationJob:
    """Evaluation of a checkpoint on the validation split, as a training evaluates itself."""

    # The job of the training, with the plan of its tables for the workers that evaluate.
    job: Job
    # A checkpoint that is due. Its files are verified.
    checkpoint: StoredCheckpoint


def validate(asked: ValidationJob, world: World, channel: Channel) -> dict[str, float]:
    """Return the metrics that early stopping can use, the same on every rank. Raises CheckpointError if a file is corrupt."""
    from trainer.checkpoint.tensors import verify_together
    from trainer.fault_points import reach
    from trainer.loop.compiled_kernels import set_kernels_of_evaluation

    checkpoint, complaint = verify_together(asked.checkpoint.path, world)
    if checkpoint is None:
        raise CheckpointError(complaint)
    built = _loaded(asked.job, checkpoint, "validate", world, channel)
    set_kernels_of_evaluation(built, asked.job.config.evaluate, world)
    step = checkpoint.manifest.step
    channel.note("evaluation", step)
    reach("evaluation", world.rank, step)
    evaluator = built.task.evaluator("validation", world, built.dynamic)
    # Each note begins the time that the watchdog allows. It names the step of the checkpoint, as in a training.
    return evaluator.mean_metrics(built.model, lambda done, total: channel.note("evaluation", step))


def log_validations(asked: tuple[Job, int], world: World, channel: Channel) -> None:
    """Write the lines of evaluations that ended after the training. asked: its job, and the steps trained."""
    from trainer.loop.progress import Messages, log_missing_validations

    if world.is_first:
        log_missing_validations(*asked, Messages(channel, world))


@dataclass(frozen=True)
class RecommendJob:
    """Recommendations of a checkpoint."""

    job: Job
    checkpoint: StoredCheckpoint
    # What is asked for.
    request: RecommendRequest
    # As for EvaluationJob.
    other_data: bool = False


def recommend(asked: RecommendJob, world: World, channel: Channel) -> PartCounts:
    """Write this worker's file of recommendations. Raises CheckpointError if the checkpoint was trained on another dataset."""
    from trainer.recommend.run import write_part

    trained = _trained(asked.job, asked.checkpoint, "recommend", world, channel, asked.other_data)
    return write_part(trained, asked.request, world, _batch_counter("recommend", "recommendation", world, channel))


@dataclass(frozen=True)
class ExplainJob:
    """Explanations of the recommendations of a checkpoint."""

    job: Job
    checkpoint: StoredCheckpoint
    # What is asked for.
    request: ExplainRequest


def explain(asked: ExplainJob, world: World, channel: Channel) -> PartResult:
    """Write this worker's files of explanations. Raises CheckpointError if the checkpoint was trained on another dataset."""
    from trainer.explanation.command.write_part import write_part

    trained = _trained(asked.job, asked.checkpoint, "explain", world, channel)
    return write_part(trained, asked.request, world, _batch_counter("explain", "explanation", world, channel))


@dataclass(frozen=True)
class ContributionsJob:
    """Contributions of the heads and blocks of a checkpoint on the validation split."""

    job: Job
    checkpoint: StoredCheckpoint
    # Name of the metric.
    metric: str


def contributions(asked: ContributionsJob, world: World, channel: Channel) -> Measured:
    """Measure the contributions. Raises CheckpointError if the checkpoint was trained on another dataset."""
    from trainer.pruning.contributions import measure_contributions

    def on_unit(done: int, total: int) -> None:
        channel.note("evaluation", done)
        if world.is_first:
            channel.send({"kind": "contributions", "done": done, "total": total})

    built = _loaded(asked.job, asked.checkpoint, "prune", world, channel)
    evaluator = built.task.evaluator("validation", world, built.dynamic)
    return measure_contributions(built.model, evaluator, asked.metric, on_unit)


def _trained(
    job: Job, checkpoint: StoredCheckpoint, stage: str, world: World, channel: Channel, other_data: bool = False
) -> TrainedModel:
    """Return the model of a checkpoint with sharded tables. Collective. Arguments as for `_loaded`."""
    from trainer.inference.trained_model import TrainedModel

    built = _loaded(job, checkpoint, stage, world, channel, other_data)
    manifest = read_manifest(job.dataset_dir)
    return TrainedModel(job, manifest, checkpoint, built.model, built.catalogue, built.dynamic)


def _loaded(
    job: Job, checkpoint: StoredCheckpoint, stage: str, world: World, channel: Channel, other_data: bool = False
) -> Built:
    """Return a sharded model with the weights with which a checkpoint is evaluated. Collective.

    other_data: whether the dataset is another one, which the driver has compared with that of the checkpoint.

    Raises CheckpointError if the checkpoint was trained on another dataset, does not fit, or is not finite.
    """
    from trainer.checkpoint.finite import refuse_broken_checkpoint
    from trainer.checkpoint.keys import tensors_of
    from trainer.loop.build import build_model, load_for_evaluation
    from trainer.loop.same_run import same_dataset

    manifest = read_manifest(job.dataset_dir)
    if not other_data and not same_dataset(checkpoint.manifest, manifest):
        raise CheckpointError(
            f"checkpoint {checkpoint.path} was made from another dataset than {job.dataset_dir}; "
            "use its own (run.dataset)"
        )
    _announce(f"{stage}: building the model of {checkpoint.path.name}", world, channel)
    built = build_model(job, manifest, world, checkpoint=checkpoint)
    load_for_evaluation(checkpoint, built)
    refuse_broken_checkpoint(checkpoint, tensors_of(built.sharded_model, built.tables, None), world)
    return built


def _batch_counter(kind: str, phase: str, world: World, channel: Channel) -> Callable[[int, int, int], None]:
    """Return a callback for each batch: a sign of progress of this rank, and the owners of all ranks for the driver.

    Args:
        kind: of the event for the driver.
        phase: of the rank, as the watchdog and a failure name it.
        world: the ranks, all of which have the same number of batches.
        channel: to the driver.
    """

    def on_batch(done: int, total: int, owners: int) -> None:
        channel.note(phase, done)
        everywhere = sum(world.gather_ints(owners))
        if world.is_first:
            channel.send({"kind": kind, "done": done, "total": total, "owners": everywhere})

    return on_batch


def _announce(text: str, world: World, channel: Channel) -> None:
    """Send a line that names a phase without progress, from the first rank."""
    if world.is_first:
        channel.send({"kind": "phase", "text": text})
