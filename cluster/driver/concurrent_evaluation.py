"""Concurrent evaluation: validates the checkpoints of a training as they are committed, in a thread of the driver.

The training marks checkpoints that are due (trainer/loop/validations.py), and does not wait. The thread sends them to other
workers one after another, records the results, names the best checkpoint, and asks the training to stop early. No ray, no torch:
the caller says how a checkpoint is evaluated.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.driver.evaluation_queue import EvaluationQueue
from cluster.driver.promotion import Promotion
from cluster.errors import JobCancelledError
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.errors import CheckpointError, first_line
from trainer.loop.state import Best, State
from trainer.loop.validations import is_due
from trainer.storage.objects.paths import path_of

JOIN_SECONDS = 0.2
END_SECONDS = 60.0  # for a cancelled evaluation

# (checkpoint, cancelled) -> its metrics. Raises JobCancelledError soon after the event is set.
Evaluate = Callable[[StoredCheckpoint, threading.Event], dict[str, float]]


class ConcurrentEvaluation:
    """The evaluations of one training. Use as a context manager: an evaluation that still runs at the end is cancelled.

    Args:
        checkpoints: the folder of the checkpoints.
        dataset: the digest of the dataset.
        promotion: receives the results.
        evaluate: evaluates a checkpoint. Called in the thread.
        send: called with events for people, in the thread and in that of the caller.
        on_result: called in the thread after each result.

    Attributes:
        early: set when training is to stop early.
    """

    def __init__(
        self,
        checkpoints: Path,
        dataset: str,
        promotion: Promotion,
        evaluate: Evaluate,
        send: Callable[[dict[str, Any]], None],
        on_result: Callable[[], None] = lambda: None,
    ) -> None:
        self.early = threading.Event()
        self._checkpoints = checkpoints
        self._dataset = dataset
        self._promotion = promotion
        self._evaluate = evaluate
        self._send = send
        self._on_result = on_result
        self._queue = EvaluationQueue()
        self._changed = threading.Condition()  # guards the queue, the promotion and the two below
        self._is_ending = False
        self._error: Exception | None = None
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="evaluation")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._cancel()
        self._thread.join(END_SECONDS)

    def on_event(self, event: dict[str, Any]) -> None:
        """Follow the training: its start, also after a restart, and the checkpoints that it saves.

        A file that cannot be written is a warning, and no reason to end the training.
        """
        try:
            match event["kind"]:
                case "starts":
                    self._follow(State(step=event["step"], best=Best(**event["best"]), counted=event["counted"]))
                case "checkpoint":
                    with self._changed:
                        self._add(path_of(event["path"]))
        except OSError as error:
            self._send({"kind": "warning", "text": f"concurrent evaluation: {first_line(error)}; it is tried again"})

    def finish(self, step: int, should_stop: Callable[[], bool]) -> bool:
        """Wait until all checkpoints that are due are evaluated. Return False if `should_stop` came first.

        Args:
            step: the last step of the training.
            should_stop: asked again and again.

        Raises what an evaluation raised that failed again.
        """
        with self._changed:
            self._add_earlier(step)  # the message about a checkpoint may be lost with its worker
            self._queue.retry()
            self._is_ending = True
            waiting = len(self._queue)
            self._changed.notify_all()
        if waiting:
            self._send({"kind": "phase", "text": f"train: waiting for the evaluation of {_number(waiting)}"})
        while self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)
            if should_stop():
                return False
        if self._error is not None:
            raise self._error
        return True

    def _cancel(self) -> None:
        self._cancelled.set()
        with self._changed:
            self._changed.notify_all()

    def _follow(self, state: State) -> None:
        """Begin at the state from which training starts."""
        with self._changed:
            self._queue.forget_after(state.step)
            self._promotion.start(state)
            self._add_earlier(state.step)

    def _add(self, path: Path) -> None:
        """Add a checkpoint that was just saved, if it is due."""
        for checkpoint in self._due(path):
            for skipped in self._queue.add(checkpoint):
                self._skip(skipped, f"{path.name} is newer, and evaluations are slower than checkpoints")
        self._changed.notify_all()

    def _add_earlier(self, step: int) -> None:
        """Add all checkpoints up to a step that are due and not evaluated yet."""
        newest = checkpoint_folder.name_of(step)
        paths = [path for path in checkpoint_folder.committed(self._checkpoints) if path.name <= newest]
        self._queue.add_earlier([due for path in paths for due in self._due(path)])
        self._changed.notify_all()

    def _due(self, path: Path) -> Iterator[StoredCheckpoint]:
        """Yield the checkpoint if it is to be evaluated, and was not added before."""
        try:
            checkpoint = StoredCheckpoint(path, checkpoint_folder.read(path))
        except (CheckpointError, OSError):  # it is looked at again when training starts or ends
            return
        manifest = checkpoint.manifest
        if not is_due(manifest) or self._promotion.has(manifest) or self._queue.has(manifest.step):
            return
        if manifest.dataset_digest != self._dataset:
            self._skip(checkpoint, "the dataset has changed since it was saved")
            return
        yield checkpoint

    def _skip(self, checkpoint: StoredCheckpoint, reason: str) -> None:
        self._promotion.add(checkpoint.manifest, None)
        self._warn(checkpoint, f"is skipped: {reason}")

    def _warn(self, checkpoint: StoredCheckpoint, text: str) -> None:
        self._send({"kind": "warning", "text": f"the evaluation of {checkpoint.path.name} {text}"})

    def _work(self) -> None:
        """Evaluate one checkpoint after another. Runs in the thread."""
        try:
            self._evaluate_all()
        except Exception as error:  # noqa: BLE001 - a thread boundary: it is raised again by finish
            self._error = error

    def _evaluate_all(self) -> None:
        while True:
            with self._changed:
                while (checkpoint := self._queue.take()) is None:
                    if self._is_ending or self._cancelled.is_set():
                        return
                    self._changed.wait()
            if self._cancelled.is_set():
                return
            started = time.monotonic()
            try:
                metrics = self._evaluate(checkpoint, self._cancelled)
                self._record(checkpoint, metrics, time.monotonic() - started)
            except JobCancelledError:
                return
            except Exception as error:  # noqa: BLE001 - of any worker, or of the storage: training continues
                self._fail(checkpoint, error)

    def _record(self, checkpoint: StoredCheckpoint, metrics: dict[str, float], seconds: float) -> None:
        """Record a result, and decide what follows from it."""
        step = checkpoint.manifest.step
        with self._changed:
            if self._queue.is_stale:
                self._queue.end()
                return
            self._promotion.add(checkpoint.manifest, metrics, seconds)
            self._queue.end()
            best, stops = self._promotion.best, self._promotion.is_out_of_patience and not self.early.is_set()
        self._send({"kind": "validation", "step": step, "metrics": metrics, "best": asdict(best)})
        self._on_result()
        if stops:
            if not self._is_ending:
                self._send({"kind": "phase", "text": "train: no further improvement; stopping with a checkpoint"})
            self.early.set()

    def _fail(self, checkpoint: StoredCheckpoint, error: Exception) -> None:
        """Put back a checkpoint with an evaluation that failed. Raises the error if the training has ended.

        A checkpoint that is corrupt or gone is skipped, as a training that resumes would skip it.
        """
        complaint = _complaint_about(checkpoint)
        with self._changed:
            if self._queue.is_stale:
                self._queue.end()
                return
            if complaint is not None:
                self._queue.end()
                self._skip(checkpoint, complaint)
                return
            if self._is_ending:
                raise error
            skipped = self._queue.fail()
            for each in skipped:
                self._skip(each, f"it failed ({first_line(error)}), and a newer checkpoint waits")
        if not skipped:
            self._warn(
                checkpoint, f"failed ({first_line(error)}); it is tried again after the next checkpoint, or at the end"
            )


def _complaint_about(checkpoint: StoredCheckpoint) -> str | None:
    """Return why a checkpoint cannot be evaluated at all, or None."""
    try:
        checkpoint_folder.verify(checkpoint.path)
    except CheckpointError as error:
        return first_line(error)
    except OSError:  # of the storage, which may answer later
        return None
    return None


def _number(checkpoints: int) -> str:
    return f"{checkpoints} checkpoint{'s' * (checkpoints > 1)}"
