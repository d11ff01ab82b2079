"""Order of concurrent evaluations: which checkpoint of a training is evaluated next, and which are skipped. No ray, no torch.

One checkpoint is evaluated at a time, in the order of steps. If evaluations are slower than checkpoints, only the newest of those
that wait is kept. So the last checkpoint of a training is always evaluated, and no more than two are pinned for long.
"""

from collections.abc import Iterable

from trainer.checkpoint.folder import StoredCheckpoint


class EvaluationQueue:
    """The checkpoints of one training that are due for evaluation."""

    def __init__(self) -> None:
        self._waiting: list[StoredCheckpoint] = []
        self._running: StoredCheckpoint | None = None
        self.is_stale = False  # the running evaluation is of a checkpoint from before which training started again
        self._is_held = False  # the first one that waits has failed, and is not tried again at once

    def __len__(self) -> int:
        return len(self._waiting) + (self._running is not None)

    def has(self, step: int) -> bool:
        """Return whether the checkpoint of a step waits or is evaluated now."""
        running = [self._running] if self._running is not None and not self.is_stale else []
        return any(each.manifest.step == step for each in (*self._waiting, *running))

    def add(self, checkpoint: StoredCheckpoint) -> list[StoredCheckpoint]:
        """Add a checkpoint that was just saved. Return those that are skipped for it: not one that is to be tried again."""
        again = self._waiting[:1] if self._is_held else []
        skipped = self._waiting[len(again) :]
        self._waiting = [*again, checkpoint]
        self._is_held = False
        return skipped

    def add_earlier(self, checkpoints: Iterable[StoredCheckpoint]) -> None:
        """Add checkpoints that were saved before this command or this attempt. They skip none."""
        self._waiting = sorted((*checkpoints, *self._waiting), key=lambda each: each.manifest.step)
        self._is_held = False

    def take(self) -> StoredCheckpoint | None:
        """Return the checkpoint to evaluate now, or None if there is none."""
        if not self._waiting or self._is_held:
            return None
        self._running = self._waiting.pop(0)
        self.is_stale = False
        return self._running

    def end(self) -> None:
        """End the running evaluation."""
        self._running = None

    def fail(self) -> list[StoredCheckpoint]:
        """End the running evaluation, which has failed and is not stale. Return the checkpoints that are skipped.

        It is tried again after the next checkpoint or at the end, unless a newer one waits already.
        """
        failed = self._running
        assert failed is not None
        self.end()
        if self._waiting:
            return [failed]
        self._waiting = [failed]
        self._is_held = True
        return []

    def retry(self) -> None:
        """Let a checkpoint with a failed evaluation be taken again."""
        self._is_held = False

    def forget_after(self, step: int) -> None:
        """Drop the checkpoints of later steps, because training has gone back to this one."""
        self._waiting = [each for each in self._waiting if each.manifest.step <= step]
        self._is_held = self._is_held and bool(self._waiting)
        self.is_stale = self.is_stale or (self._running is not None and self._running.manifest.step > step)
