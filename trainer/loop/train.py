"""The training loop of one worker. Each turn is: step, report, evaluate, save, stop.

All ranks run it in lockstep. Only the first rank writes logs and sends messages to the driver.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from sharding.tables.early_requests import send_requests
from sharding.world import World
from trainer.config.job import Channel, Job, Outcome
from trainer.data.dataset.manifest import read_manifest
from trainer.data.stream.order import Position
from trainer.data.stream.shares import Step
from trainer.fault_points import reach
from trainer.global_batch.dynamic_ids import ChangedRows
from trainer.loop.build import agree_at_start, build_ema, build_model, build_optimizers, build_step
from trainer.loop.checkpoints import Checkpoints, checkpoint_to_resume
from trainer.loop.compiled_kernels import kernels_of_ranks, set_kernels_of_evaluation
from trainer.loop.compiled_layers import compile_layers
from trainer.loop.early_stopping import out_of_patience
from trainer.loop.evaluations import Evaluations
from trainer.loop.loss_spikes import LossSpikes
from trainer.loop.measure_placement import record_placement, record_steps
from trainer.loop.memory import EVERY_STEPS, memory_trimmer
from trainer.loop.nonfinite import check_step
from trainer.loop.profiling import StepProfiler
from trainer.loop.progress import Messages, TrainingProgress
from trainer.loop.rank_measures import RankMeasures, record_peak
from trainer.loop.step import EarlyBatch, StartedStep
from trainer.loop.step_clock import StepClock
from trainer.loop.timetables import timetable_for
from trainer.loop.trackers import check_trackers
from trainer.optim.schedule import rate_factor
from trainer.tasks.ranking.daily_training import read_days


@dataclass(frozen=True)
class Started:
    """A step of which the result is not known to the loop yet."""

    item: Step[Any]
    """The work of this rank in the step."""
    step: StartedStep
    """The step."""
    ids: dict[str, float]
    """The counts of tables with dynamic ids since the last line of training, if the step has one."""


@dataclass(frozen=True)
class Prepared:
    """A step with what it needs from other ranks."""

    item: Step[Any]
    """The work of this rank in the step."""
    batch: Any
    """The batch, on the CPU, completed and with rows in place of dynamic ids."""
    changed: list[ChangedRows]
    """The rows that got another id, which are reset before the look-up."""
    ids: dict[str, float]
    """The counts of tables with dynamic ids since the last line of training, if the step has one."""
    early: EarlyBatch | None = None
    """The batch with look-ups that are sent, if they are sent before the step."""


@dataclass(frozen=True)
class Planned:
    """Evaluations and checkpoints that are planned after a step."""

    is_last: bool
    """The training ends."""
    validation: bool
    """The validation split is evaluated."""
    next_day: bool
    """The next day is evaluated."""
    checkpoint: bool
    """A checkpoint is saved, as always after an evaluation."""


class Training:
    """One worker's training: built once, run once."""

    def __init__(self, job: Job, world: World, channel: Channel) -> None:
        self.job = job
        self.world = world
        self.messages = Messages(channel, world)
        manifest = read_manifest(job.dataset_dir)
        facts = {"config": job.config_digest, "dataset": manifest.digest, "torch": torch.__version__}
        agree_at_start(world, facts)
        check_trackers(job.config.tracking)
        self.messages.lap("agreement")
        checkpoint = checkpoint_to_resume(job, manifest, world, self.messages)
        self.messages.lap("verification of the checkpoint")
        days = read_days(job, manifest, world, fresh=checkpoint is None)
        timetable = timetable_for(job, manifest, days, checkpoint)
        self.built = build_model(job, manifest, world, days, checkpoint)
        self.optimizers = build_optimizers(self.built, job.config.train)
        self.ema = build_ema(job, self.built)
        self.timetable = timetable
        self.messages.lap("model and tables")
        if job.config.train.compiled_kernels:
            self.built.model.kernels = kernels_of_ranks(world, "train.compiled_kernels")
            self.messages.lap("compiled kernels")
        set_kernels_of_evaluation(self.built, job.config.evaluate, world)
        if job.config.train.torch_compile:
            compile_layers(self.built.model, world)
        self.checkpoints = Checkpoints(
            job, manifest, world, self.messages, timetable, self.built, self.optimizers, self.ema
        )
        state = self.checkpoints.resume(checkpoint)
        self.messages.lap("loading of the checkpoint")
        if job.config.plan.measure:
            record_placement(job.run_dir, self.built, self.optimizers, world)
        self.clock = StepClock(world.device)
        self.step = build_step(job, self.built, self.optimizers, self.ema, world, self.clock)
        self.measures = RankMeasures(channel.measure, self.clock, job.config.train.precision)
        self.profiler = StepProfiler(job.run_dir, world.rank, job.config.tracking.profile_steps)
        self.stream = self.built.task.stream(world)
        self.messages.warn(self.stream.batches.share_warning())
        self.epoch_ends, self.state = timetable.epoch_ends(state, self.stream.batches, world)
        self.total_steps = int(self.epoch_ends[-1])
        self.progress = TrainingProgress(job, world, self.messages, timetable, self.epoch_ends, self.state.step)
        self.checkpoints.before_write = self.progress.sync
        self.progress.log_validations(self.state.step)
        if job.evaluates_concurrently:
            best = asdict(self.state.best)
            self.messages.send("starts", step=self.state.step, best=best, counted=self.state.counted)
        self.evaluations = Evaluations(job, manifest, world, self.built, self.ema, self.progress)
        self.spikes = LossSpikes(job.config.guards.loss_spikes, self.messages)
        self._trim_memory = memory_trimmer()
        self._saves = 0  # requests for a checkpoint that were followed
        self._started: Started | None = None
        self._upcoming: Iterator[Step[Any]] = iter(())  # the steps after the one that is trained or prepared
        self._prepared: Prepared | None = None  # the next step, if its look-ups are sent
        self._stop_requested = False
        self._save_requested = False
        self.messages.lap("data")

    def run(self) -> Outcome:
        """Train from the newest checkpoint to the end. Collective."""
        reason = "finished"
        if out_of_patience(self.state, self.job.config.train.early_stopping):
            reason = "early"
        elif self.state.step < self.total_steps:
            record_peak(self.job.run_dir, self.job.config.train.precision, self.world)
            with self.checkpoints.kept(), self.stream.read_ahead(self.state.position, self.timetable.end) as steps:
                reason = self._loop(steps)
        self.checkpoints.finish()
        self.progress.report_saved(self.checkpoints.collect())
        self.progress.close()
        best = self.state.best
        return Outcome(reason, self.state.step, best.step if best.value is not None else None, best.value)

    def _loop(self, steps: Iterable[Step[Any]]) -> str:
        """Train all steps, and return why the training ended."""
        self.built.model.train()
        self._upcoming = iter(steps)
        saved_step = self.state.step
        self._note("data")
        while (item := self._next_item()) is not None:
            self._note("step")
            self._train(item)
            saved = self.checkpoints.collect()
            self.progress.report_saved(saved)
            self.measures.saved(saved)
            self.measures.after_step()
            if self.state.step % EVERY_STEPS == 0:
                self._trim_memory()

            planned = self._planned_after(self.state.step, self.state.position)
            is_due = planned.validation and self.evaluations.are_concurrent
            if planned.checkpoint or self._follows_requests():
                self._finish_step()
            if (planned.validation and not is_due) or planned.next_day:
                self._note("evaluation")
                reach("evaluation", self.world.rank, self.state.step)
                self.checkpoints.check_weights(self.state.step)
            if planned.validation:
                self.state = self.evaluations.validate(self.state)
            if planned.next_day:
                self.evaluations.evaluate_next_day(self.state)

            follows = self._follows_requests()
            at_once = planned.is_last or follows
            if (planned.checkpoint or at_once) and saved_step != self.state.step:
                self._note("checkpoint")
                self._save(must=at_once, is_due=is_due)
                saved_step = self.state.step
                self._save_requested = False
            self._note("data")

            if planned.is_last:
                return "finished"
            if out_of_patience(self.state, self.job.config.train.early_stopping):
                return "early"
            if self._stop_requested and follows:
                return "stopped"
        return "finished"

    def _next_item(self, is_early: bool = False) -> Step[Any] | None:
        """Return the step to train next; None at the end. Waits for its data unless it is prepared.

        is_early: the step before it is not finished.
        """
        if self._prepared is not None:
            reach("data", self.world.rank, self.state.step)
            return self._prepared.item
        asked = time.monotonic()
        item = next(self._upcoming, None)
        if item is not None and not is_early:
            reach("data", self.world.rank, self.state.step)  # a pause here is a wait for data
        self.clock.waited(time.monotonic() - asked)
        return item

    def _planned_after(self, step: int, position: Position) -> Planned:
        """Return what is planned after `step` steps, at `position`."""
        is_last = step >= self.total_steps
        due = self.timetable.due_at(position)
        validates = is_last or due.validation
        every_steps = self.job.config.checkpoint.every_steps
        saves = every_steps is not None and step % every_steps == 0
        return Planned(is_last, validates, due.next_day, saves or validates or due.next_day)

    def _follows_requests(self) -> bool:
        """Return whether to stop or save now because it was requested: not if the next step is prepared, which then ends first."""
        return self._prepared is None and (self._stop_requested or self._save_requested)

    def _note(self, phase: str) -> None:
        """Note what this rank does, and how far training is."""
        examples = self.stream.batches.examples.number_of(self.state.position)
        self.messages.note(phase, self.state.step, examples)

    def _train(self, item: Step[Any]) -> None:
        """Train one step, and update the state. The result is known afterwards, unless the step says that it is read later."""
        factor = rate_factor(self.state.step, self.total_steps, self.job.config.train)
        stop_requested = self.messages.stop_requested() or self.checkpoints.has_failed()
        prepared = self._prepared or self._prepare(item, self.state.step)
        self._prepared = None
        self.built.dynamic.reset(prepared.changed, self.built.sharded_model, self.optimizers)
        saves = self.messages.saves_requested()
        save_requested = saves > self._saves
        counting = self.measures.counting(item.batch.layout.num_events)
        with counting, self.profiler.tracing(self.state.step):
            step = self.step.start(
                prepared.batch,
                self.state.step,
                factor, stop_requested, save_requested, self._limit_after_last_step,
                prepared.early,
                lambda: self._prepare_next(item.after),
            )  # fmt: skip
        self._saves = saves
        self.state = self.state.moved_to(item.after)
        self._started = Started(item, step, prepared.ids)
        if not self.step.reads_later:
            self._finish_step()

    def _prepare(self, item: Step[Any], step: int) -> Prepared:
        """Return a step, the one of number `step`, with what it needs from other ranks. Collective."""
        # Not in the thread that reads ahead: ranks exchange ids, and the row of an id depends on all steps before this one.
        batch = self.built.task.complete_batch(item.batch, item.before, self.world)
        batch, changed = self.built.dynamic.assign_rows(batch)
        ids = self.built.dynamic.report() if self.progress.has_line(step + 1) else {}
        return Prepared(item, batch, changed, ids)

    def _prepare_next(self, position: Position) -> None:
        """Prepare the step after the one that is queued, which ends at `position`, and send its look-ups. Collective.

        Not if something follows that needs the state between the two: mappings of ids are then those after the next step.
        """
        number = self.state.step + 1
        is_asked = self._stop_requested or self._save_requested
        if not self.job.config.train.send_ids_early or is_asked or self._planned_after(number, position).checkpoint:
            return
        item = self._next_item(is_early=True)
        if item is not None:
            prepared = self._prepare(item, number)
            batch = prepared.batch.to(self.world.device)
            tables = self.built.model.tables
            sent = send_requests(dict(tables.collections.items()), tables.requests(batch.items.rows, batch.items.bags))
            self._prepared = replace(prepared, early=EarlyBatch(batch, sent))

    def _limit_after_last_step(self) -> float:
        """Finish the step before the one that is queued, and return the largest loss of the one that is."""
        if self._prepared is not None and self._prepared.early is not None:
            for request in self._prepared.early.sent.values():
                request.send_ids()
        self._finish_step(num_later=1)
        return self.spikes.limit(self.state)

    def _finish_step(self, num_later: int = 0) -> None:
        """Wait for the result of the step that was started last, and follow it. Collective. Does nothing if it is finished.

        num_later: Steps that have started after it.
        """
        if self._started is None:
            return
        started = self._started
        self._started = None
        result = self.step.finish(started.step)
        self.clock.collect(num_later)
        self.state = self.state.after_result(trained=result.skipped is None)
        self.progress.log_examples(self.state.step, started.item.batch.row_ids, result.skipped)
        check_step(result, self.state, self.job, self.messages)
        self.state = self.spikes.after(result, self.state)
        self.progress.after_step(started.item, result, self.state, started.ids)
        self._stop_requested = self._stop_requested or result.stop_requested
        self._save_requested = self._save_requested or result.save_requested

    def _save(self, must: bool, is_due: bool) -> None:
        """Save a checkpoint. Collective. must: wait until it is written. is_due: other workers validate it."""
        with self.progress.paused():
            record_steps(self.job.run_dir, self.clock, self.world)
            self.checkpoints.save(self.state, self.stream.batches.examples, must, is_due)
