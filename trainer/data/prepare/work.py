"""What one preparing is: the job that all tasks share, and the journal by which an interrupted one goes on.

Everything happens in a work folder that belongs to exactly these inputs and settings. A task writes its files, then its
result under its name by atomic rename; a task whose result is there is not run again.
"""

import importlib
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from trainer.data.dataset.folder import Existing, Request
from trainer.data.dataset.partition_events import GroupPlan
from trainer.data.dataset.splits import Cuts
from trainer.data.logs.config import FeatureSpec, feature_specs
from trainer.data.logs.contract import LogInputs
from trainer.data.logs.reading import Rules
from trainer.errors import UserError
from trainer.storage.restricted_pickle import ForbiddenPickleError, restricted_load


@dataclass(frozen=True)
class Partitioning:
    """How users are spread: by hash over `num_hashed` partitions, of which some are split once more because they are large.

    shares: for each hashed partition, into how many partitions of the dataset it is split.
    """

    num_hashed: int
    shares: tuple[int, ...]

    @property
    def places(self) -> list[tuple[int, int]]:
        """(hashed partition, share) of every partition of the dataset."""
        return [(hashed, share) for hashed, count in enumerate(self.shares) for share in range(count)]


@dataclass(frozen=True)
class PrepareJob:
    """What every task needs to know. `existing`: the dataset that is appended to."""

    folder: Path
    work: Path
    request: Request
    inputs: LogInputs
    rules: Rules
    cuts: Cuts
    num_hashed: int
    existing: Existing | None = None

    @property
    def generation(self) -> int:
        return self.existing.manifest.generation + 1 if self.existing else 0

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        return feature_specs(self.request.logs)

    def spill_file(self, chunk: int) -> Path:
        return self.work / f"events-{chunk:05d}.arrow"

    def rejected_in(self, stage: str, task: int) -> Path:
        return self.work / f"rejected-{stage}-{task:05d}.arrow"

    def part_file(self, partition: int) -> Path:
        return self.work / f"part-{self.generation:03d}-{partition:05d}.parquet"

    def cuts_file(self, partition: int) -> Path:
        return self.work / f"cuts-{self.generation:03d}-{partition:05d}.parquet"


@dataclass(frozen=True)
class GroupJob:
    """What the tasks of the second pass need besides. chunks: numbers of those that are used."""

    job: PrepareJob
    plan: GroupPlan
    partitioning: Partitioning
    chunks: tuple[int, ...]


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` by a rename at the end.

    A worker that outlives its killed driver by a moment thus touches no file of the attempt that goes on.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        if temporary.exists():  # nothing was quarantined, for instance
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_result(work: Path, stage: str, task: int, result: Any) -> None:
    """Note that a task is done, and what it found. Its files must be complete."""
    with complete(_result_path(work, stage, task)) as path:
        path.write_bytes(pickle.dumps(result))


def saved_result(work: Path, stage: str, task: int) -> Any:
    """What `save_result` kept. Raises UserError if somebody put something else in its place."""
    path = _result_path(work, stage, task)
    with path.open("rb") as file:
        try:
            return restricted_load(file, _is_result)
        except ForbiddenPickleError as error:
            raise UserError(
                f"{path}: holds {error}, which reading it would run, and which prepare has never written. Nothing of it was run; "
                f"delete {work} to prepare from the start"
            ) from None


def _is_result(module: str, name: str) -> bool:
    """Return whether a pickled result may name this: our dataclasses, and what numpy and Arrow rebuild their values with."""
    if module.split(".")[0] == "trainer":
        kind = getattr(importlib.import_module(module), name, None)
        return isinstance(kind, type) and is_dataclass(kind)
    return name in _PARTS_OF_RESULTS.get(module, ())


_PARTS_OF_RESULTS = {
    "builtins": {"bytearray"},
    "collections": {"Counter"},
    "numpy": {"dtype", "ndarray"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "pyarrow.lib": {
        "_reconstruct_table",
        "_restore_array",
        "chunked_array",
        "field",
        "py_buffer",
        "schema",
        # types
        "binary",
        "decimal128",
        "decimal256",
        "dictionary",
        "large_list",
        "list_",
        "timestamp",
        "type_for_alias",
    },
}


def saved_results(work: Path, stage: str) -> Mapping[int, Any]:
    """Return results of the tasks that an interrupted attempt finished. One that a power failure cut short is not finished."""
    results = {}
    for number in sorted(int(path.stem.rpartition("-")[2]) for path in work.glob(f"{stage}-*.done")):
        with suppress(EOFError, pickle.UnpicklingError):
            results[number] = saved_result(work, stage, number)
    return results


def _result_path(work: Path, stage: str, task: int) -> Path:
    return work / f"{stage}-{task:05d}.done"
