"""The training loop of one worker. The order of its paragraphs is fixed: step, log, evaluate, save, stop.

All ranks run it in lockstep; only the first writes logs and talks to the driver. What the loop carries from step to step is in
`State`, which is what a checkpoint holds besides tensors.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch

from sharding.world import World
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint import tensors as checkpoint_tensors
from trainer.checkpoint.finite import broken_tensors, broken_weights_message, rates_of, refuse_broken_checkpoint
from trainer.checkpoint.folder import CheckpointManifest, StoredCheckpoint
from trainer.checkpoint.keys import tensors_of
from trainer.data.dataset.manifest import read_manifest
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.order import Position, position_of
from trainer.data.stream.prefetch import Prefetch
from trainer.data.stream.shares import Step
from trainer.errors import NonFiniteLossError, NonFiniteWeightsError, UserError
from trainer.job import Channel, Job, Outcome
from trainer.loop.build import agree_at_start, build_model, build_optimizers, load_checkpoint
from trainer.loop.measure_placement import record_placement, record_steps
from trainer.loop.memory import EVERY_STEPS, memory_trimmer
from trainer.loop.pace import Pace
from trainer.loop.same_run import check_same_run
from trainer.loop.step import StepResult, TrainStep
from trainer.loop.step_clock import StepClock
from trainer.metrics_log import Ledger, MetricsLog
from trainer.optim.ema import WeightEma
from trainer.optim.schedule import rate_factor
from trainer.tasks.daily_training import day_ends, days_record, position_among, read_days
from trainer.tasks.metrics import larger_is_better
from trainer.tasks.task import Evaluator, Stream, Task


@dataclass(frozen=True)
class Best:
    """The state of early stopping."""

    value: float | None = None
    step: int = 0
    evaluations_since: int = 0

    def after(self, value: float, step: int, smaller_is_better: bool = False) -> "Best":
        """A value that is not finite is no improvement."""
        improved = self.value is None or (value < self.value if smaller_is_better else value > self.value)
        if improved and math.isfinite(value):
            return Best(value, step, 0)
        return Best(self.value, self.step, self.evaluations_since + 1)


@dataclass(frozen=True)
class State:
    """step: steps trained; position: where the data stands after them; skipped: steps that were not finite, in all and in a row.

    extra_steps: those before the position, beyond what the dataset as it is now would have taken: negative where it has grown.
    """

    step: int = 0
    position: Position = field(default_factory=lambda: Position(0, 0))
    best: Best = field(default_factory=Best)
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    extra_steps: int = 0


class Training:
    """One worker's training: built once, run once."""

    def __init__(self, job: Job, world: World, channel: Channel) -> None:
        self.job, self.world, self.channel = job, world, channel
        self.manifest = read_manifest(job.dataset_dir)
        facts = {"config": job.config_digest, "dataset": self.manifest.digest, "torch": torch.__version__}
        agree_at_start(world, facts)
        found = self._find()
        self.by_day = read_days(job, self.manifest, world, fresh=found is None)
        self.built = build_model(job, self.manifest, world, self.by_day)
        self.optimizers = build_optimizers(self.built, job.config.train)
        decay = job.config.train.ema_decay
        self.averages = None if decay is None else WeightEma(self.built.sharded_model, self.built.tables, decay)
        self.grew = found is not None and found.manifest.dataset_digest in self.manifest.grown_from
        self.state = self._resume(found)
        if job.config.plan.measure:
            record_placement(job.run_dir, self.built, self.optimizers, world)
        self.clock = StepClock(world.device)
        self.step = TrainStep(
            self.built.model,
            self.optimizers,
            world,
            job.config.run.seed,
            self.clock,
            self.built.task.parts_of,
            job.config.train.clip_norm,
            self.averages,
            job.config.train.precision,
        )
        self.stream = _checked_stream(self.built.task, world)
        self._warn(self.stream.batches.share_warning())
        self.evaluator: Evaluator | None = None
        if self.manifest.counts.validation_targets:
            self.evaluator = self.built.task.evaluator("validation", world, self.built.dynamic)
        self.next_day = self.built.task.next_day(world, self.built.dynamic)
        if self.by_day is None:
            self.epochs = job.config.train.epochs
            self.epoch_ends = self._epoch_ends()
        else:
            self.epochs = self.by_day.days.stop
            self.epoch_ends = day_ends(self.by_day.days, self.state.step, self.state.position, job.config.train)
        self.total_steps = int(self.epoch_ends[-1])
        self.log = MetricsLog(job.run_dir, self.state.step) if world.is_first else None
        self.ledger = Ledger(job.run_dir, world.rank, self.state.step) if job.config.train.ledger else None
        self._pace = Pace(self.state.step, world.world_size)
        self._trim_memory = memory_trimmer()

    def run(self) -> Outcome:
        """Train from where the newest checkpoint left off. Collective."""
        reason = "finished"
        if self._patience_is_out():
            reason = "early"
        elif self.state.step < self.total_steps:
            with Prefetch(self.stream.steps(self.state.position, self.epochs)) as steps:
                reason = self._loop(steps)
        for file in (self.log, self.ledger):
            if file is not None:
                file.close()
        best = self.state.best
        return Outcome(reason, self.state.step, best.step if best.value is not None else None, best.value)

    def _loop(self, steps: Prefetch[Step[Any]]) -> str:
        self.built.model.train()
        saved_step = self.state.step
        for item in steps:
            result = self._train(item)
            self._report(item, result)
            if self.state.step % EVERY_STEPS == 0:
                self._trim_memory()
            last = self.state.step >= self.total_steps
            epoch_ended = self.state.position.trained == 0
            day_ended = epoch_ended and self.by_day is not None
            is_due = self.state.position.epoch % self.job.config.train.evaluate_every_epochs == 0
            evaluated = last or (epoch_ended and not day_ended and is_due)
            if evaluated or day_ended:
                self._check_weights()
            if evaluated:
                self._evaluate()
            if day_ended:
                self._evaluate_next_day()
            early = self._patience_is_out()
            every = self.job.config.checkpoint.every_steps
            due = every is not None and self.state.step % every == 0
            if (evaluated or day_ended or due or result.stop_requested) and saved_step != self.state.step:
                self._save()
                saved_step = self.state.step
            if early or last or result.stop_requested:
                return "early" if early and not last else "finished" if last else "stopped"
        return "finished"

    def _train(self, item: Step[Any]) -> StepResult:
        train = self.job.config.train
        factor = rate_factor(self.state.step, self.total_steps, train)
        stop = self.world.is_first and self.channel.stop_requested()
        # Not in the thread that reads ahead: ranks exchange ids, and which row an id has depends on all steps before this one.
        batch = self.built.task.complete_batch(item.batch, item.before, self.world)
        batch = self.built.dynamic.assign_rows(batch, self.built.sharded_model, self.optimizers, self.world)
        result = self.step(batch.to(self.world.device), self.state.step, factor, stop)
        self.clock.collect()
        in_a_row = 0 if result.finite else self.state.skipped_in_a_row + 1
        skipped = self.state.skipped_steps + (not result.finite)
        self.state = replace(
            self.state, step=self.state.step + 1, position=item.after, skipped_steps=skipped, skipped_in_a_row=in_a_row
        )
        if self.ledger is not None:
            self.ledger.write(self.state.step, item.batch.row_ids.tolist())
        if result.broken:
            names = [f"table.{name}.weight" if name else "dense" for name in result.broken]
            raise NonFiniteWeightsError(broken_weights_message(names, self.job, self.state.step - 1))
        if not result.finite:
            self._record_skipped(item)
        if in_a_row == 1:
            self._warn(
                f"step {self.state.step} was skipped: its loss or gradient is not finite; metrics.jsonl has its rows"
            )
        if in_a_row > train.max_nonfinite_steps:
            raise NonFiniteLossError(
                f"training: the loss or gradient was not finite in {in_a_row} steps in a row, up to step {self.state.step}; "
                f"none of them was applied. A rate is probably too large: {rates_of(self.job)}. Lower it or raise "
                "train.warmup_steps, in another run.dir"
            )
        return result

    def _record_skipped(self, item: Step[Any]) -> None:
        """Write the rows of a skipped step to the log. Collective: every rank's rows are in question, so each names its own."""
        rows = self.world.gather_objects(item.batch.row_ids.tolist())
        if self.log is not None:
            self.log.write(self.state.step, "skipped", {"reason": "not finite", "row_ids": rows})

    def _report(self, item: Step[Any], result: StepResult) -> None:
        if self.log is None:
            return
        speed = self._pace.count(self.state.step, result, self.total_steps)
        if self.state.step % self.job.config.train.log_every_steps == 0 or self.state.step == self.total_steps:
            values = {"epoch": item.epoch, "loss": result.loss, **speed, "imbalance": self._pace.imbalance()}
            if result.grad_norm is not None:
                values["grad_norm"] = result.grad_norm
            self.log.write(self.state.step, "train", {**values, **self.built.dynamic.report()})
        if self._pace.may_send():
            progress: dict[str, Any] = {"step": self.state.step, "total_steps": self.total_steps, "epoch": item.epoch}
            if self.by_day is not None:
                progress["day"] = self.by_day.days.calendar.name_of(item.epoch)
            self.channel.send(
                {"kind": "train", "loss": result.loss, **progress, **speed, "next_checkpoint": self._next_save()}
            )

    def _next_save(self) -> int:
        """The step of the next planned checkpoint: after an evaluation, at a multiple of every_steps, or at the end."""
        every_epochs, every_steps = self.job.config.train.evaluate_every_epochs, self.job.config.checkpoint.every_steps
        planned: list[int] = self.epoch_ends[every_epochs - 1 :: every_epochs].tolist()
        if every_steps is not None:
            planned.append(every_steps * (self.state.step // every_steps + 1))
        return min([self.total_steps, *(step for step in planned if step > self.state.step)])

    def _evaluate(self) -> None:
        if self.evaluator is None:
            return
        started = time.monotonic()
        with nullcontext() if self.averages is None else self.averages.swapped_in():
            metrics = self.evaluator.mean_metrics(self.built.model)
        self._pace.pause(time.monotonic() - started)
        stopping = self.job.config.train.early_stopping
        if stopping is not None:
            smaller_is_better = not larger_is_better(stopping.metric)
            # A model that gave no finite loss in its last step is no candidate, whatever its metrics come to.
            value = math.nan if self.state.skipped_in_a_row else metrics[stopping.metric]
            best = self.state.best.after(value, self.state.step, smaller_is_better)
            self.state = replace(self.state, best=best)
        if self.log is not None:
            self.log.write(self.state.step, "validation", {**metrics, "seconds": time.monotonic() - started})
            self.channel.send(
                {"kind": "validation", "step": self.state.step, "metrics": metrics, "best": asdict(self.state.best)}
            )

    def _evaluate_next_day(self) -> None:
        if self.next_day is None:
            return
        started = time.monotonic()
        with nullcontext() if self.averages is None else self.averages.swapped_in():
            found = self.next_day.metrics(self.built.model, self.state.position.epoch)
        self._pace.pause(time.monotonic() - started)
        if found is not None and self.log is not None:
            self.channel.send({"kind": "progressive", "step": self.state.step, **found})
            metrics = found.pop("metrics")
            self.log.write(self.state.step, "progressive", {**found, **metrics, "seconds": time.monotonic() - started})

    def _patience_is_out(self) -> bool:
        stopping = self.job.config.train.early_stopping
        return stopping is not None and self.state.best.evaluations_since >= stopping.patience

    def _tensors(self) -> dict[str, Any]:
        built = self.built
        return tensors_of(built.sharded_model, built.tables, self.optimizers, built.state(), self.averages)

    def _check_weights(self) -> None:
        """Raise NonFiniteWeightsError if a weight is not finite, so that none is evaluated. Collective."""
        names = broken_tensors(self._tensors(), self.world)
        if names:
            raise NonFiniteWeightsError(broken_weights_message(names, self.job, self.state.step))

    def _save(self) -> None:
        started = time.monotonic()
        record_steps(self.job.run_dir, self.clock, self.world)
        try:
            path = checkpoint_tensors.save(
                self.job.checkpoints_dir, self._tensors(), self.world, self._describe, self.state.step
            )
        except NonFiniteWeightsError as error:
            raise NonFiniteWeightsError(broken_weights_message(error.names, self.job, self.state.step)) from None
        if self.world.is_first:
            stopping, best = self.job.config.train.early_stopping, self.state.best
            if stopping is not None and best.value is not None and best.step == self.state.step:
                checkpoint_folder.write_best(self.job.checkpoints_dir, best.step, stopping.metric, best.value)
            checkpoint_folder.retire(self.job.checkpoints_dir, self.job.config.checkpoint.keep, self._warn)
            seconds = time.monotonic() - started
            self.channel.send({"kind": "checkpoint", "step": self.state.step, "path": str(path), "seconds": seconds})
        self._pace.pause(time.monotonic() - started)

    def _describe(self, files: dict[str, dict[str, Any]]) -> CheckpointManifest:
        examples, position = self.stream.batches.examples, self.state.position
        return CheckpointManifest(
            step=self.state.step,
            position=examples.number_of(position),
            num_rows=examples.of(position.epoch).num_examples,
            identity=self.job.identity,
            config=self.job.config_values,
            plan=self.built.planned_tables.plan.values(),
            dataset_digest=self.manifest.digest,
            metrics={
                "best": asdict(self.state.best),
                "skipped_steps": self.state.skipped_steps,
                "skipped_in_a_row": self.state.skipped_in_a_row,
                "extra_steps": self.state.extra_steps,
            },
            versions={name: version(name) for name in ("torch", "torchrec")},
            files=files,
            days=None if self.by_day is None else days_record(position, self.by_day.days, self.manifest),
        )

    def _find(self) -> StoredCheckpoint | None:
        """The newest checkpoint, if it is of this run on this dataset. Collective."""
        found, complaints = checkpoint_tensors.find_to_resume(self.job.checkpoints_dir, self.world)
        for complaint in complaints:
            self._warn(f"{complaint}; going back to the one before")
        if found is not None:
            check_same_run(found, self.job, self.manifest)
        return found

    def _warn(self, text: str | None) -> None:
        if text is not None and self.world.is_first:
            self.channel.send({"kind": "warning", "text": text})

    def _resume(self, found: StoredCheckpoint | None) -> State:
        self.optimizers.materialize_dense_state()
        if found is None:
            return State() if self.by_day is None else State(position=Position(self.by_day.days.first, 0))
        position = position_of(found.manifest.position, found.manifest.num_rows)
        if self.by_day is not None:
            position, warning = position_among(self.by_day.days, found)
            self._warn(warning)
        load_checkpoint(found, self.built, self.optimizers, self.averages)
        refuse_broken_checkpoint(found, self._tensors(), self.world)
        saved = found.manifest
        state = State(
            step=saved.step,
            position=position,
            best=Best(**saved.metrics["best"]),
            skipped_steps=saved.metrics["skipped_steps"],
            skipped_in_a_row=saved.metrics["skipped_in_a_row"],
            extra_steps=saved.metrics.get("extra_steps", 0),
        )
        if self.by_day is None and self.grew:
            # Its order is another: the epoch begins anew. What was measured before is no measure of what comes.
            state = replace(state, position=Position(position.epoch, 0), best=Best())
        stopping, best = self.job.config.train.early_stopping, state.best
        if self.world.is_first and stopping is not None and best.value is not None:
            # A process may have died between the commit and this note, or the newest checkpoint may have been corrupt.
            checkpoint_folder.write_best(self.job.checkpoints_dir, best.step, stopping.metric, best.value)
        if self.world.is_first:
            self.channel.send({"kind": "resumed", "step": saved.step, "path": str(found.path)})
        return state

    def _epoch_ends(self) -> torch.Tensor:
        """Steps up to the end of each epoch, (epochs,) int64; max_steps ends the last one early. Collective.

        Steps before logs were appended stay counted; the epochs from there on are as long as the dataset is now.
        """
        train, state = self.job.config.train, self.state
        grew = self.grew or state.extra_steps != 0
        steps = _steps_of_epochs(self.job, self.stream.batches, self.world, None if grew else train.max_steps)
        ends = steps.cumsum(0)
        if self.grew:
            before = int(steps[: state.position.epoch].sum())
            self.state = state = replace(state, extra_steps=state.step - before)
        ends = ends + state.extra_steps
        total = ends[-1:] if train.max_steps is None else ends[-1:].clamp(max=train.max_steps)
        return torch.cat((ends[ends < total], total))


def _checked_stream(task: Task, world: World) -> Stream:
    """This rank's training stream. Collective: a file that one rank finds not to be what the manifest says is named on all."""
    stream, complaint = None, None
    try:
        stream = task.stream(world)
    except UserError as error:
        complaint = str(error)
    complaints = [str(text) for text in world.gather_objects(complaint) if text is not None]
    if complaints:
        raise UserError(complaints[0])
    assert stream is not None
    return stream


def _steps_of_epochs(job: Job, batches: GlobalBatches, world: World, limit: int | None) -> torch.Tensor:
    """Steps of each epoch, (epochs,) int64, not counted further than `limit`. Collective.

    Under a budget of events each epoch has to be gone through, so the ranks share them.
    """
    epochs = job.config.train.epochs
    steps = torch.zeros(epochs, dtype=torch.int64)
    for epoch in range(world.rank, epochs, world.world_size):
        steps[epoch] = batches.num_steps(epoch, limit)
    return world.sum(steps.to(world.device)).cpu()
