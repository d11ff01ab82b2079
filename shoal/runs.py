"""Runs on disk: their config, stages, dataset, checkpoints, evaluations and metrics log. Imports neither torch nor ray."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.driver.stage_record import StageRecord
from shoal.config import Config
from shoal.results import Dataset, Evaluation, dataset_of, read_evaluation
from trainer.checkpoint import folder as checkpoint_folder
from trainer.data.dataset.manifest import read_manifest
from trainer.errors import UserError
from trainer.metrics_log import read_metrics
from trainer.storage.objects.paths import path_of

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Run:
    """A run folder, of a run that has ended or that is in progress. Each property is read when it is asked for."""

    folder: Path
    config: Config

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Open a run folder. Raises UserError if the folder holds no run."""
        path = path_of(folder)
        if not (path / "config.json").exists():
            raise UserError(f"{path}: no config.json, so this is no run folder")
        return cls(path, Config.load(path / "config.json"))

    @property
    def stages(self) -> dict[str, str]:
        """The status of each stage: "done", "running", "failed", "stopped" or "interrupted"."""
        return StageRecord(self.folder).statuses()

    @property
    def dataset(self) -> Dataset:
        """The prepared dataset. Raises UserError if there is none."""
        own = self.folder / "dataset"  # the folder may have been moved since it was recorded
        folder = own if self.config.run.dataset is None else self.config.dataset_dir
        return dataset_of(folder, read_manifest(folder))

    @property
    def checkpoints(self) -> list[Path]:
        """Committed checkpoints, newest first."""
        return checkpoint_folder.committed(self.folder / "checkpoints")

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint that `evaluate` takes by default: the best, or else the newest. None if there is none.

        Its files are not compared with their hashes here; whatever loads them does that.
        """
        folder = self.folder / "checkpoints"
        best = checkpoint_folder.read_best(folder)
        path = None if best is None else folder / checkpoint_folder.name_of(best["step"])
        return path if path in self.checkpoints else next(iter(self.checkpoints), None)

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """Evaluations of the best checkpoint by split ("test"), and of named ones by name and split ("step_000001000/test")."""
        folder = self.folder / "evaluation"
        return {
            str(file.parent.relative_to(folder)): read_evaluation(file.parent)
            for file in sorted(folder.rglob("metrics.json"))
        }

    def metrics_log(self, kind: str | None = None) -> "pa.Table":
        """Return metrics.jsonl as a table, with null where a line has no such column.

        Args:
            kind: "train", "validation", "progressive" (days, in daily training) or "skipped" (steps that were not
                applied). By default all lines.
        """
        import pyarrow as pa

        lines = read_metrics(self.folder / "metrics.jsonl")
        rows = [row for row in lines if kind is None or row["kind"] == kind]
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: [row.get(name) for row in rows] for name in names})
