"""Output stage: the flow of a command that writes a folder of results on the workers, unless the same results are there.

Workers write into an attempt next to the folder, which takes its place at the end. A failed attempt is removed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from cluster.driver.progress import View, announce
from cluster.driver.stage_record import StageRecord
from trainer.storage.objects.paths import remove_tree


class ResultsManifest(Protocol):
    """Description of a folder of results."""

    @property
    def inputs(self) -> str:
        """Digest of everything that the results depend on."""

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint."""

    @property
    def num_users(self) -> int:
        """Users with results."""

    @property
    def num_rows(self) -> int:
        """Rows of all files."""


Request = TypeVar("Request")
Part = TypeVar("Part")
Manifest = TypeVar("Manifest", bound=ResultsManifest)


@dataclass(frozen=True)
class OutputStage(Generic[Request, Part, Manifest]):
    """The differences between the commands."""

    # Name of the stage.
    name: str
    # Digest of everything that the results depend on.
    inputs: str
    # The folder to write.
    target: Path
    # Returns the description of a folder, None if it is not whole.
    read: Callable[[Path], Manifest | None]
    # Makes a fresh folder next to the one to write.
    new_attempt: Callable[[Path], Path]
    # Checks what is asked for, and writes into the attempt what the workers read.
    prepare: Callable[[Path], Request]
    # Runs the job on the workers; returns the result of each.
    work: Callable[[Request], list[Part]]
    # Writes the other files into the attempt, and returns its description.
    describe: Callable[[Path, Request, list[Part]], Manifest]
    # Lets the attempt take the place of the folder.
    commit: Callable[[Path, Path, Manifest], None]
    # Returns a line about the results, which took some seconds.
    summary: Callable[[Manifest, float], str]


def run_output_stage(run_dir: Path, stage: OutputStage[Request, Part, Manifest], view: View) -> tuple[Manifest, Path]:
    """Return the description of the results, and their folder.

    Args:
        run_dir: the run folder, which records the stage.
        stage: the command.
        view: where progress is shown.
    """
    done = stage.read(stage.target)
    if done is not None and done.inputs == stage.inputs:
        view.print_line(f"{stage.name}: done before, of {done.checkpoint}, in {stage.target}")
        announce(view, stage.name, "done before")
        return done, stage.target
    record = StageRecord(run_dir)
    attempt = stage.new_attempt(stage.target)
    try:
        request = stage.prepare(attempt)
        record.begin(stage.name, stage.inputs)
        announce(view, stage.name, "started")
        started = time.monotonic()
        parts = record.run_stages({stage.name: stage.inputs}, lambda: stage.work(request))
        view.clear()
        done = stage.describe(attempt, request, parts)
        stage.commit(attempt, stage.target, done)
    except BaseException:
        remove_tree(attempt, ignore_errors=True)
        raise
    result = {"folder": str(stage.target), "num_users": done.num_users, "num_rows": done.num_rows}
    record.finish(stage.name, stage.inputs, result)
    announce(view, stage.name, "done")
    view.print_line(stage.summary(done, time.monotonic() - started))
    return done, stage.target
