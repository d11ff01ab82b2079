"""The job of one preparation, which all tasks share, and the journal from which an interrupted one continues.

The work folder belongs to exactly these inputs and settings. A task writes its files, then its result, under its name
by atomic rename. A task with a stored result is not run again.
"""

import importlib
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

from trainer.data.dataset.folder import DatasetRequest, Existing
from trainer.data.dataset.partition_events import GroupPlan
from trainer.data.dataset.splits import Cuts, NewEvents
from trainer.data.logs.config import FeatureSpec, feature_specs
from trainer.data.logs.contract import LogInputs
from trainer.data.logs.reading import Rules
from trainer.errors import UserError
from trainer.storage.files import upload
from trainer.storage.mapped import LEAST_BYTES, StoredArray
from trainer.storage.objects.paths import ObjectPath
from trainer.storage.restricted_pickle import ForbiddenPickleError, restricted_load


@dataclass(frozen=True)
class Partitioning:
    """Distribution of users: by hash over `num_hashed` partitions, of which large ones are split once more."""

    # Number of hashed partitions.
    num_hashed: int
    # For each hashed partition: the number of dataset partitions that it is split into.
    shares: tuple[int, ...]

    @property
    def places(self) -> list[tuple[int, int]]:
        """(hashed partition, share) of every partition of the dataset."""
        return [(hashed, share) for hashed, count in enumerate(self.shares) for share in range(count)]


@dataclass(frozen=True)
class PrepareJob:
    """Inputs and settings that every task needs."""

    # The dataset folder.
    folder: Path
    # The work folder.
    work: Path
    # The requested dataset.
    request: DatasetRequest
    # Sources with files, contracts and chunks.
    inputs: LogInputs
    # Conditions under which rows are rejected.
    rules: Rules
    # Bounds of the splits.
    cuts: Cuts | NewEvents
    # Number of hashed partitions.
    num_hashed: int
    # The dataset that is appended to, if any; for a derived dataset, the one it is derived from.
    existing: Existing | None = None

    @property
    def generation(self) -> int:
        """Generation that this job writes."""
        return self.existing.manifest.generation + 1 if self.existing else 0

    @property
    def is_derived(self) -> bool:
        """True if vocabularies, known items and fits stay those of the existing dataset."""
        return isinstance(self.cuts, NewEvents)

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """All features."""
        return feature_specs(self.request.logs)

    @property
    def output(self) -> Path:
        """Folder of finished files before the commit: the work folder, from which they are renamed.

        Objects are written where they stay. Without the manifest they are no dataset.
        """
        return self.folder if isinstance(self.folder, ObjectPath) else self.work

    def spill_file(self, chunk: int) -> Path:
        """Return the file in which the rows of a chunk wait for the second pass."""
        return self.work / f"events-{chunk:05d}.arrow"

    def rejected_in(self, stage: str, task: int) -> Path:
        """Return the file of the rows that a task quarantines."""
        return self.work / f"rejected-{stage}-{task:05d}.arrow"

    def part_file(self, partition: int) -> Path:
        """Return the file of a partition's part."""
        return self.output / f"part-{self.generation:03d}-{partition:05d}.parquet"

    def cuts_file(self, partition: int) -> Path:
        """Return the file of a partition's cuts."""
        return self.output / f"cuts-{self.generation:03d}-{partition:05d}.parquet"


@dataclass(frozen=True)
class GroupJob:
    """Additional inputs of the tasks of the second pass."""

    # The job.
    job: PrepareJob
    # How partitions become rows.
    plan: GroupPlan
    # Distribution of users.
    partitioning: Partitioning
    # Numbers of the chunks that are used.
    chunks: tuple[int, ...]
    # Large vocabularies in files, by table: the plan of `to_send` does not hold them.
    stored: Mapping[str, StoredArray] = field(default_factory=dict)

    def to_send(self) -> "GroupJob":
        """Write large vocabularies into the work folder, and return the job for tasks, which map them."""
        ids = dict(self.plan.ids)
        stored = {}
        for table, own in self.plan.ids.items():
            if own.vocabulary is None or own.vocabulary.nbytes < LEAST_BYTES:
                continue
            path = self.job.work / f"values-{table}.arrow"
            with complete(path) as local:
                written = StoredArray.write(own.vocabulary, local)
            stored[table] = replace(written, path=path)
            ids[table] = replace(own, vocabulary=None)
        return replace(self, plan=replace(self.plan, ids=ids), stored=stored)

    def received(self) -> "GroupJob":
        """Return the job of a task, with all vocabularies in its plan."""
        ids = dict(self.plan.ids)
        for table, stored in self.stored.items():
            ids[table] = replace(ids[table], vocabulary=stored.array())
        return replace(self, plan=replace(self.plan, ids=ids), stored={})


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which is renamed to `path` at the end. For an object it is local, and uploaded at the end.

    So a worker that briefly outlives its killed driver does not change a file of the attempt that continues.
    """
    if isinstance(path, ObjectPath):
        with tempfile.TemporaryDirectory(prefix="shoal-prepare-") as folder:
            local = Path(folder) / path.name
            yield local
            if local.exists():
                upload(local, path)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        if temporary.exists():  # absent if, for example, nothing was quarantined
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_result(work: Path, stage: str, task: int, result: Any) -> None:
    """Store that a task is done, with its result. Its files must be complete."""
    with complete(_result_path(work, stage, task)) as path:
        path.write_bytes(pickle.dumps(result))


def saved_result(work: Path, stage: str, task: int) -> Any:
    """Read a stored result. Raises UserError if the file has been replaced by something else."""
    path = _result_path(work, stage, task)
    with path.open("rb") as file:
        try:
            return restricted_load(file, _is_result)
        except ForbiddenPickleError as error:
            raise UserError(
                f"{path}: holds {error}, which would run when it is read, and which prepare never writes. Nothing of it was run; "
                f"delete {work} to prepare from the start"
            ) from None


def _is_result(module: str, name: str) -> bool:
    """Return whether a stored result may name this: our dataclasses, and functions that rebuild values of numpy and Arrow."""
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


def saved_results(work: Path, stage: str) -> Iterator[tuple[int, Any]]:
    """Yield number and result of the tasks that an interrupted attempt finished, without those that a power failure truncated."""
    for number in sorted(int(path.stem.rpartition("-")[2]) for path in work.glob(f"{stage}-*.done")):
        with suppress(EOFError, pickle.UnpicklingError):
            yield number, saved_result(work, stage, number)


def _result_path(work: Path, stage: str, task: int) -> Path:
    return work / f"{stage}-{task:05d}.done"
