"""Stored evaluations: finds the folder of one, and reads its metrics.json and per_user.parquet."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.comparison.mapped_tables import mapped
from trainer.errors import UserError
from trainer.storage.objects.paths import path_of
from trainer.storage.parquet import parquet_schema, read_parquet

Input = str | Path | tuple[str, str | Path]

_LISTS = ("top_items",)  # columns that no comparison needs
_EVALUATION = "evaluation"  # the folder of evaluations in a run folder
_MAX_DEPTH = 4  # an evaluation is at most so many folders below its run


@dataclass(frozen=True)
class StoredEvaluation:
    """One evaluation, as `shoal evaluate` wrote it."""

    name: str
    """How pages and messages call it; unique in a comparison."""
    side: str | None
    """The name that the user chose. Several evaluations may have it: they are seeds of one side. None if none was chosen."""
    folder: Path
    """The folder of metrics.json."""
    run_dir: Path | None
    """The run folder; None if the evaluation is stored outside of one."""
    values: dict[str, Any]
    """The content of metrics.json."""
    table: pa.Table
    """The rows of per_user.parquet, one per user, without the recommended items, in a temporary file if they are many."""

    @property
    def users(self) -> pa.Array:
        """The users, as in the logs."""
        return self.table.column("user").combine_chunks()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a ranking model; empty for next_item."""
        return tuple(self.values.get("labels", ()))

    @property
    def metrics(self) -> dict[str, float | None]:
        """The metrics of the model by name. Those of a label always have its name, as in "auc/click"."""
        metrics: dict[str, float | None] = self.values["metrics"]
        return {self.full_name(name): value for name, value in metrics.items()}

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The resolved config of the run; None if it is not known."""
        if self.run_dir is None:
            return None
        try:
            config: dict[str, Any] = json.loads((self.run_dir / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return config

    def full_name(self, name: str) -> str:
        """Return a metric or column with the name of its label, which a model of one label leaves out."""
        return f"{name}/{self.labels[0]}" if len(self.labels) == 1 else name

    def column(self, metric: str) -> np.ndarray | None:
        """Return a number per user, (n,) float64 with NaN for null, by its full name; None if there is no such column."""
        stored = metric.partition("/")[0] if len(self.labels) == 1 else metric
        if stored not in self.table.column_names:
            return None
        values: np.ndarray = pc.cast(self.table.column(stored), pa.float64()).to_numpy()
        return values

    def take(self, places: pa.Array) -> "StoredEvaluation":
        """Return the evaluation with the users at these places, in this order."""
        if len(places) == self.table.num_rows and bool((places.to_numpy() == np.arange(len(places))).all()):
            return self
        return replace(self, table=mapped(self.table.take(places)))


def read_evaluations(inputs: Sequence[Input], split: str, checkpoint: str | None) -> list[StoredEvaluation]:
    """Read the evaluations of a comparison.

    Args:
        inputs: run folders, or folders of evaluations; each may have a name, as in "SASRec=runs/a" or ("SASRec", "runs/a").
            Several runs of the same name are seeds of one model.
        split: the split to read from run folders.
        checkpoint: the checkpoint to read from run folders, as `shoal evaluate --checkpoint` named it; None for the best.

    Raises:
        UserError: fewer than two inputs, one that appears twice, or files that are missing or damaged.
    """
    if len(inputs) < 2:
        raise UserError("compare: name at least two runs, as in `shoal compare runs/a runs/b`")
    located = []
    for given in inputs:
        name, path = (given[0], path_of(given[1])) if isinstance(given, tuple) else _split_name(str(given))
        folder = _locate(path, split, checkpoint)
        located.append((name, path, folder, _run_of(folder)))
    folders = [folder.resolve() for _, _, folder, _ in located]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            raise UserError(
                f"compare: {located[place][1]} is the same evaluation as another input; name each only once"
            )
    defaults = _names([run.resolve() if run else folder.resolve() for _, _, folder, run in located], folders)
    sides = [chosen for chosen, _, _, _ in located]
    # Numbers are found by the name of their evaluation, so it must be unique.
    names = [
        side if side and sides.count(side) == 1 else default for side, default in zip(sides, defaults, strict=True)
    ]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [_read(name, side, folder, run) for name, (side, _, folder, run) in zip(names, located, strict=True)]


def _split_name(given: str) -> tuple[str | None, Path]:
    """Return the name and the path of an input such as "SASRec=runs/a"; the name is None without one."""
    name, equals, path = given.partition("=")
    if equals and name and path and not path_of(given).exists():
        return name, path_of(path)
    return None, path_of(given)


def _locate(path: Path, split: str, checkpoint: str | None) -> Path:
    """Return the folder of an evaluation: `path` itself, or the one of a split in a run folder."""
    if (path / "metrics.json").is_file():
        return path
    if not path.is_dir():
        raise UserError(f"compare: {path}: there is no such folder; name a run folder or the folder of an evaluation")
    root = path / _EVALUATION
    parents = [root] if checkpoint is None else [root / checkpoint, *sorted(root.glob(f"{checkpoint}-*"))]
    folders = [parent / split for parent in parents if (parent / split / "metrics.json").is_file()]
    if len(folders) == 1:
        return folders[0]
    if folders:
        raise UserError(
            f"compare: {path}: several evaluations of {checkpoint}; name one: {', '.join(map(str, folders))}"
        )
    there = sorted(str(file.parent.relative_to(path)) for file in root.rglob("metrics.json"))
    wanted = f"the {split} split" + (f" of {checkpoint}" if checkpoint else "")
    choice = "choose one with --split and --checkpoint"
    known = f"it has {', '.join(there)}; {choice}" if there else "it has none; evaluate it first"
    chosen = f" --checkpoint {checkpoint}" if checkpoint else ""
    raise UserError(
        f"compare: {path}: no evaluation of {wanted}: {known} "
        f"(`shoal evaluate {path}/config.json --split {split}{chosen}`)"
    )


def _run_of(folder: Path) -> Path | None:
    """Return the run folder of an evaluation, None if it is stored elsewhere."""
    for parent in [*folder.absolute().parents][:_MAX_DEPTH]:
        if parent.name == _EVALUATION and (parent.parent / "config.json").is_file():
            return parent.parent
    return None


def _names(places: Sequence[Path], folders: Sequence[Path]) -> list[str]:
    """Return a short unique name per evaluation: as many last folders as are needed to distinguish it from the others."""
    if len(set(places)) < len(places):  # several evaluations of one run
        places = folders
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _read(name: str, side: str | None, folder: Path, run_dir: Path | None) -> StoredEvaluation:
    """Read metrics.json and per_user.parquet."""
    try:
        values = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if not {"task", "split", "checkpoint", "protocol", "metrics", "num_users"} <= values.keys():
            raise ValueError("metrics.json lacks entries")
        file = folder / "per_user.parquet"
        columns = [column for column in parquet_schema(file).names if column not in _LISTS]
        table = mapped(read_parquet(file, columns=columns))
        users = table.column("user")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder}: is no complete evaluation ({error}); run `shoal evaluate` of it again") from None
    if pc.count_distinct(users).as_py() != table.num_rows:
        raise UserError(f"{folder}: per_user.parquet lists a user twice, so users cannot be paired")
    return StoredEvaluation(name, side, folder, run_dir, values, table)
