"""The section `[run]`, and all sections of a run together, except those of the cluster."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from models.config import NextItemConfig
from models.ranking.config import RankingConfig
from sharding.config import CommunicationConfig, IdsConfig, PlanConfig, TableConfig
from trainer.config import checks
from trainer.config.checkpoint import CheckpointConfig
from trainer.config.defaults import with_defaults
from trainer.config.evaluate import EvaluateConfig
from trainer.config.guards import GuardsConfig
from trainer.config.renamed import with_current_names
from trainer.config.split import LeaveOneOutConfig, SplitConfig
from trainer.config.storage import StorageConfig
from trainer.config.tracking import TrackingConfig
from trainer.config.train import TrainConfig
from trainer.data.logs.config import LogsConfig
from trainer.storage.objects.paths import path_of


class RunSection(BaseModel, extra="forbid", frozen=True, strict=True):
    """The folders of a run, its seed, and what to do with new logs."""

    dir: str = Field(
        "runs/default",
        description="run folder, a path or a URI such as s3://bucket/runs/demo. It is created if absent, and resumed if it holds "
        "the same run",
    )
    dataset: str | None = Field(
        None,
        description="folder of the sequence dataset, a path or a URI. Runs can share one; default: dataset/ in the run folder",
    )
    new_logs: Literal["ask", "evaluate", "continue"] = Field(
        "ask",
        description="what to do with log files that are new since the run was trained. ask: stop and name the choices; "
        "evaluate: append them and evaluate the trained model; continue: append them and train further (not used with "
        "train.days)",
    )
    seed: int = Field(1, ge=0, description="seed of the initial weights, the order of examples, dropout and negatives")


class RunConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """A run as every worker needs to know it. All sections have defaults except `logs`."""

    run: RunSection = Field(default_factory=RunSection)
    logs: LogsConfig
    split: SplitConfig = Field(default_factory=LeaveOneOutConfig)
    model: Annotated[NextItemConfig | RankingConfig, Field(discriminator="task")] = Field(
        default_factory=NextItemConfig
    )
    tables: dict[str, TableConfig] = Field(default_factory=dict)
    plan: PlanConfig = Field(default_factory=PlanConfig)
    communication: CommunicationConfig = Field(default_factory=CommunicationConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    guards: GuardsConfig = Field(default_factory=GuardsConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    storage: StorageConfig = Field(default_factory=StorageConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @model_validator(mode="before")
    @classmethod
    def _add_defaults(cls, values: Any) -> Any:
        return with_defaults(with_current_names(values)) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _check_sections_together(self) -> "RunConfig":
        checks.check_tables(self.tables, self.logs)
        checks.check_task(self.model, self.logs)
        checks.check_heads(self.model, self.tables["item"].dim)
        checks.check_inputs(self.logs, self.model, self.tables)
        checks.check_days(self.train, self.split, self.model.task)
        checks.check_batches(self.train, self.model)
        checks.check_protocol(self.evaluate, self.model)
        return self

    @property
    def ids_of_tables(self) -> dict[str, IdsConfig]:
        """Return how the values of each table become rows."""
        return {name: table.ids for name, table in self.tables.items()}

    @property
    def run_dir(self) -> Path:
        """Return the folder of the run, as configured."""
        return path_of(self.run.dir, "run.dir")

    @property
    def dataset_dir(self) -> Path:
        """Return the folder of the sequence dataset."""
        return path_of(self.run.dataset, "run.dataset") if self.run.dataset else self.run_dir / "dataset"
