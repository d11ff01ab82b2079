"""Progress of a training for people: metrics.jsonl, TensorBoard, the log of trained examples, messages to the driver."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from torch import Tensor

from sharding.world import World
from trainer.checkpoint.background import Saved
from trainer.config.job import Channel, Job
from trainer.data.stream.shares import Step
from trainer.errors import first_line
from trainer.loop.pace import Pace
from trainer.loop.state import State
from trainer.loop.step_result import StepResult
from trainer.loop.stragglers import Stragglers
from trainer.loop.timetable import Timetable
from trainer.loop.trackers import Trackers
from trainer.loop.validations import line_of, read_validations, validated_steps, without_line
from trainer.metrics_log import LineSink, MetricsLog, SampleLog, read_metrics

NAME_AGAIN_SECONDS = 600.0  # between two messages about the same slow rank


class Messages:
    """Messages to the process that launched the workers. Only the first rank sends any."""

    def __init__(self, channel: Channel, world: World) -> None:
        self._channel = channel
        self._world = world

    def send(self, kind: str, **values: Any) -> None:
        """Send a message of a kind, with plain values."""
        if self._world.is_first:
            self._channel.send({"kind": kind, **values})

    def warn(self, text: str | None) -> None:
        """Send a warning for the user, if there is a text."""
        if text is not None:
            self.send("warning", text=text)

    def saves_requested(self) -> int:
        """Return how many checkpoints the first rank was asked for so far. Other ranks learn of it in the next step."""
        return self._channel.saves_requested() if self._world.is_first else 0

    def note(self, phase: str, step: int, examples: int = 0) -> None:
        """Note what this rank does, so that a hang can be named.

        Args:
            phase: "data", "step", "evaluation" or "checkpoint".
            step: Steps trained.
            examples: Examples trained since the start of the run.
        """
        self._channel.note(phase, step, examples)

    def validations_made(self) -> int:
        """Return how many checkpoints other workers have validated. Only the first rank learns of it."""
        return self._channel.validations_made() if self._world.is_first else 0

    def lap(self, name: str) -> None:
        """Note the end of a part of the start, so that the time of a recovery can be explained."""
        self._channel.lap(name)

    def stop_requested(self) -> bool:
        """Return True if the first rank was asked to stop. Other ranks learn of it in the next step."""
        return self._world.is_first and self._channel.stop_requested()


class TrainingProgress:
    """The reports of one training. Files and messages come from the first rank; each rank logs its own examples."""

    def __init__(
        self, job: Job, world: World, messages: Messages, timetable: Timetable, epoch_ends: Tensor, step: int
    ) -> None:
        self._job = job
        self._world = world
        self._messages = messages
        self._timetable = timetable
        self._epoch_ends: list[int] = epoch_ends.tolist()
        self._total_steps = self._epoch_ends[-1]
        self._log = MetricsLog(job.run_dir, step, _trackers_of(job, messages)) if world.is_first else None
        logs_examples = job.config.train.sample_log
        self._sample_log = SampleLog(job.run_dir, world.rank, step, world.world_size) if logs_examples else None
        self._pace = Pace(step, world.world_size)
        self._stragglers = Stragglers()
        self._name_again: dict[int, float] = {}
        self._validations = 0  # made by other workers, when the record was read
        self._validated: set[int] | None = None  # steps with a line of validation; None until the record is read

    def close(self) -> None:
        """Close the files."""
        for file in (self._log, self._sample_log):
            if file is not None:
                file.close()

    def sync(self) -> None:
        """Store the lines so far where a resumed run looks for them. Storage that refuses it is a warning."""
        for file in (self._log, self._sample_log):
            if file is not None:
                try:
                    file.sync()
                except OSError as error:
                    self._messages.warn(
                        f"{file.path.name}: could not be stored ({first_line(error)}); it is tried again"
                    )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the body as time of steps."""
        started = time.monotonic()
        yield
        self._pace.pause(time.monotonic() - started)
        self._stragglers.pause(time.monotonic() - started)

    def log_examples(self, step: int, row_ids: Tensor, skipped: str | None) -> None:
        """Write the ids of the examples that this rank trained in a step, if the run keeps them, and those of a skipped step.

        Collective if the step was skipped: the rows of all ranks may be the cause, so each rank sends its own.

        Args:
            step: The steps trained.
            row_ids: The ids.
            skipped: The reason why the step was skipped, or None.
        """
        if self._sample_log is not None:
            self._sample_log.write(step, row_ids.tolist())
        if skipped is None:
            return
        rows = self._world.gather_objects(row_ids.tolist())
        if self._log is not None:
            self._log.write(step, "skipped", {"reason": skipped, "row_ids": rows})

    def has_line(self, step: int) -> bool:
        """Return whether this rank writes a line of training after `step` steps."""
        return self._log is not None and (
            step % self._job.config.train.log_every_steps == 0 or step == self._total_steps
        )

    def after_step(self, item: Step[Any], result: StepResult, state: State, ids: dict[str, float]) -> None:
        """Report a step.

        Args:
            item: What this rank trained.
            result: The result of the step.
            state: The state after it.
            ids: The counts of tables with dynamic ids since the last line, if the step has a line.
        """
        if self._log is None:
            return
        speed = self._pace.count(state.step, result, self._total_steps)
        if self.has_line(state.step):
            values = {"epoch": item.epoch, "loss": result.loss, **speed, "imbalance": self._pace.imbalance()}
            if result.grad_norm is not None:
                values["grad_norm"] = result.grad_norm
            self._log.write(state.step, "train", {**values, **ids})
        if (made := self._messages.validations_made()) > self._validations:
            self._validations = made
            self.log_validations(state.step)
        now = time.monotonic()
        straggler = self._stragglers.add(result.rank_seconds, result.rank_events, now)
        if straggler is not None:
            self._log.write(state.step, "straggler", asdict(straggler))
            if now >= self._name_again.get(straggler.rank, 0.0):
                self._name_again[straggler.rank] = now + NAME_AGAIN_SECONDS
                self._messages.send("straggler", step=state.step, **asdict(straggler))
        if self._pace.may_send():
            self._messages.send(
                "train",
                loss=result.loss,
                step=state.step,
                total_steps=self._total_steps,
                workers=self._world.world_size,
                epoch=item.epoch,
                **self._timetable.progress_of(item.epoch),
                **speed,
                next_checkpoint=next_save(state.step, self._epoch_ends, self._job),
            )

    def report_saved(self, saved: list[Saved]) -> None:
        """Report committed checkpoints: how long training waited, how long writing took, and the size."""
        if self._log is None:
            return
        for one in saved:
            values = {"stall_seconds": one.stall_seconds, "seconds": one.seconds, "bytes": one.num_bytes}
            self._log.write(one.step, "checkpoint", values)
            self._messages.send("checkpoint", step=one.step, path=str(one.path), seconds=one.seconds)

    def evaluating(self, done: int, total: int) -> None:
        """Report how many batches of an evaluation during training are done, at most a few times a second."""
        if self._pace.may_send():
            self._messages.send("validate", done=done, total=total)

    def validated(self, state: State, metrics: dict[str, float], seconds: float) -> None:
        """Report an evaluation of the validation split."""
        if self._log is not None:
            self._log.write(state.step, "validation", {**metrics, "seconds": seconds})
            self._messages.send("validation", step=state.step, metrics=metrics, best=asdict(state.best))

    def log_validations(self, step: int) -> None:
        """Write the lines of concurrent evaluations that metrics.jsonl lacks.

        step: The steps trained. The record may still hold later ones, of an attempt that was lost.
        """
        record = read_validations(self._job.run_dir) if self._log is not None else []
        if self._log is None or not record:
            return
        if self._validated is None:
            self._validated = validated_steps(read_metrics(self._log.path))
        for each in without_line(record, self._validated, step):
            self._log.write(each.step, "validation", line_of(each))
            self._validated.add(each.step)

    def evaluated_next_day(self, step: int, results: dict[str, Any], seconds: float) -> None:
        """Report an evaluation of the next day. results: its day, and `metrics`."""
        if self._log is not None:
            self._messages.send("progressive", step=step, **results)
            day = {name: value for name, value in results.items() if name != "metrics"}
            self._log.write(step, "progressive", {**day, **results["metrics"], "seconds": seconds})


def log_missing_validations(job: Job, step: int, messages: Messages) -> None:
    """Write the lines of concurrent evaluations that ended after the training. Only the first rank may call this.

    step: The steps trained.
    """
    log = MetricsLog(job.run_dir, step, _trackers_of(job, messages))
    validated = validated_steps(read_metrics(log.path))
    for each in without_line(read_validations(job.run_dir), validated, step):
        log.write(each.step, "validation", line_of(each))
    log.sync()
    log.close()


def _trackers_of(job: Job, messages: Messages) -> list[LineSink]:
    """Return what receives the lines of metrics.jsonl besides the file and TensorBoard."""
    tracking = job.config.tracking
    if tracking.mlflow is None and tracking.wandb is None:
        return []
    return [Trackers(tracking, job.run_dir, job.config_values, messages.warn)]


def next_save(step: int, epoch_ends: Sequence[int], job: Job) -> int:
    """Return the step of the next planned checkpoint: after an evaluation, at a multiple of every_steps, or at the end."""
    every_epochs = job.config.train.evaluate_every_epochs
    every_steps = job.config.checkpoint.every_steps
    planned = list(epoch_ends[every_epochs - 1 :: every_epochs])
    if every_steps is not None:
        planned.append(every_steps * (step // every_steps + 1))
    return min([epoch_ends[-1], *(save for save in planned if save > step)])
