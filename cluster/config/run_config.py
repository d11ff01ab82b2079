"""The whole config: a run and its cluster, read from TOML, overridden and checked. Imports neither torch nor ray."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from cluster.config.explain import explain
from cluster.config.file import apply_override, read_values, refuse_unusable
from cluster.config.placement import PlacementConfig, check_selector
from sharding.support import codec_reason, placement_reason
from trainer.config.identity import at_default, identity
from trainer.config.job import Job
from trainer.config.run_config import RunConfig
from trainer.errors import UserError
from trainer.tasks.checks import check_early_stopping

MAX_SECONDS = 10_000_000.0  # 115 days; torch and Ray count in 64 bits of nanoseconds


class RecoveryConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Recovery from failed workers: how often, and how long a phase may take before it counts as a hang.

    A recovery restarts all workers, which continue from the newest checkpoint. Mistakes that the user can correct end the run.
    """

    failures_per_hour: int = Field(
        10,
        ge=0,
        description="failures within an hour after which the run ends. 0: the first failure ends it, and the same command resumes",
    )
    preemptions_per_hour: int | None = Field(
        None,
        ge=0,
        description="the same for nodes that the cluster takes back, which are no failures; default: no limit",
    )
    same_step_failures: int = Field(
        3, ge=1, description="failures in a row, without a step beyond the first of them, after which the run ends"
    )
    backoff_seconds: float = Field(
        1.0,
        ge=0.0,
        le=MAX_SECONDS,
        description="wait before the second restart within an hour, doubled at each further one up to 30 seconds",
    )
    resize_seconds: float = Field(
        60.0,
        ge=1.0,
        le=MAX_SECONDS,
        description="seconds between two looks for resources with which a smaller group could grow again (cluster.min_workers)",
    )
    heartbeat_seconds: float = Field(
        20.0,
        ge=2.0,
        le=MAX_SECONDS,
        description="seconds without a sign of life after which a worker is named, killed and replaced. Workers send one a second",
    )
    start_seconds: float = Field(
        1800.0,
        gt=0.0,
        le=MAX_SECONDS,
        description="longest time to wait for nodes that can hold the workers, to build the model, or to restore a checkpoint",
    )
    first_step_seconds: float = Field(
        1800.0, gt=0.0, le=MAX_SECONDS, description="longest time of the first step, which may compile or fill caches"
    )
    step_seconds: float = Field(
        600.0, gt=0.0, le=MAX_SECONDS, description="longest time of any other step, with the wait for its data"
    )
    evaluation_seconds: float = Field(
        7200.0, gt=0.0, le=MAX_SECONDS, description="longest time of an evaluation during training"
    )
    checkpoint_seconds: float = Field(1800.0, gt=0.0, le=MAX_SECONDS, description="longest time to save a checkpoint")


class EvaluationWorkersConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Workers of their own for the evaluations during training, so that training continues meanwhile."""

    num_workers: int = Field(
        0,
        ge=0,
        description="number of workers that evaluate the checkpoints of a training while it continues, in addition to its own. "
        "0: training pauses, and its own workers evaluate",
    )
    cpus_per_worker: int = Field(1, ge=1, description="CPUs and torch threads of each of them")
    gpus_per_worker: int = Field(
        0, ge=0, le=1, description="GPUs of each of them: 0 evaluates on CPUs with gloo, 1 on GPUs with NCCL"
    )
    placement: PlacementConfig = Field(default_factory=PlacementConfig)


class ClusterConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """The workers and where they run."""

    address: str | None = Field(
        None, description='address of a running Ray cluster ("auto", "host:6379"); default: start a local cluster'
    )
    num_workers: int = Field(2, ge=1, description="number of training workers. Results do not depend on it")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="fewest workers with which to continue when nodes are lost; the group grows again up to num_workers when there "
        "are resources; default: num_workers",
    )
    cpus_per_worker: int = Field(1, ge=1, description="CPUs and torch threads of each worker")
    gpus_per_worker: int = Field(
        0, ge=0, le=1, description="GPUs of each worker: 0 trains on CPUs with gloo, 1 on GPUs with NCCL"
    )
    autoscaling: bool = Field(
        False,
        description="whether the cluster adds nodes by itself. Then workers that its present nodes cannot hold are waited for "
        "instead of refused",
    )
    prepare_tasks: int | None = Field(
        None,
        ge=1,
        description="number of prepare tasks that run in parallel; default: all CPUs of the nodes that may run them",
    )
    prepare_labels: dict[str, str] = Field(
        default_factory=dict,
        description="labels of the nodes that run the tasks of prepare, as in `cluster.placement.labels`; default: all nodes",
    )
    collective_timeout_seconds: float = Field(
        300.0,
        gt=0.0,
        le=MAX_SECONDS,
        description="seconds that a worker waits for the others in one collective operation before it fails",
    )
    placement: PlacementConfig = Field(default_factory=PlacementConfig)
    recovery: RecoveryConfig = Field(default_factory=RecoveryConfig)
    evaluation: EvaluationWorkersConfig = Field(default_factory=EvaluationWorkersConfig)

    @field_validator("prepare_labels")
    @classmethod
    def _check_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        return check_selector(labels)

    @model_validator(mode="after")
    def _check_workers(self) -> "ClusterConfig":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers = {self.min_workers} is more than num_workers = {self.num_workers}")
        return self

    @property
    def per_worker(self) -> dict[str, float]:
        """Return the resources of a worker, as Ray names them."""
        return {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker, **self.placed.resources}

    @property
    def placed(self) -> PlacementConfig:
        """Return the placement. A cluster that a command starts itself is this machine, one node without labels."""
        return self.placement if self.address is not None else PlacementConfig()

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Return the type of the workers' devices."""
        return "cuda" if self.gpus_per_worker else "cpu"

    @property
    def of_evaluation(self) -> "ClusterConfig | None":
        """Return the cluster with the workers of concurrent evaluation in place of those of training; None without any."""
        wanted = self.evaluation
        if not wanted.num_workers:
            return None
        none = EvaluationWorkersConfig()
        own = {name: getattr(wanted, name) for name in type(wanted).model_fields}
        return self.model_copy(update={**own, "min_workers": None, "evaluation": none})


class Config(RunConfig, extra="forbid", frozen=True, strict=True):
    """A run and the cluster that it runs on."""

    cluster: ClusterConfig = Field(default_factory=ClusterConfig)

    @model_validator(mode="after")
    def _check_metrics(self) -> "Config":
        check_early_stopping(self.train, self.evaluate, self.model, self.logs)
        return self

    @model_validator(mode="after")
    def _check_devices(self) -> "Config":
        """Reject tables, codecs, kernels and precisions that the workers' devices do not support."""
        if self.train.tf32 and self.cluster.device == "cpu":
            raise ValueError(
                "train.tf32 = true is for GPUs, and workers have none (cluster.gpus_per_worker); leave it out"
            )
        evaluation = self.cluster.of_evaluation
        for device in {self.cluster.device, self.cluster.device if evaluation is None else evaluation.device}:
            for name, section in (("train", self.train), ("evaluate", self.evaluate)):
                if section.compiled_kernels and device == "cuda":
                    raise ValueError(
                        f"{name}.compiled_kernels = true is for CPUs, and workers have GPUs (cluster.gpus_per_worker); leave it out"
                    )
            if (reason := codec_reason(self.communication, device)) is not None:
                raise ValueError(reason)
            for name, table in self.tables.items():
                if (reason := placement_reason(table, device)) is not None:
                    raise ValueError(f"tables.{name}: {reason}")
        return self


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a TOML (or a run's resolved config.json), apply `key=value` overrides, check.

    Raises UserError naming the file, the key, and for an unknown key the nearest known one.
    """
    values = read_values(path)
    for override in overrides or []:
        apply_override(override, values)
    return check_config(values, str(path))


def check_config(values: dict[str, Any], origin: str) -> Config:
    """Build a Config from plain values; `origin` names their source in errors."""
    refuse_unusable(values, f"config {origin}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, origin, Config)) from None


def job_of(config: Config) -> Job:
    """Return the job of a config. Its paths are absolute, because workers run in folders of their own."""
    config = config.model_copy(update={"evaluate": config.evaluate.with_absolute_paths()})
    return Job(
        run_dir=config.run_dir.resolve(),
        dataset_dir=config.dataset_dir.resolve(),
        config=config,
        identity=identity(config),
        at_default=at_default(config),
        evaluates_concurrently=config.cluster.of_evaluation is not None,
    )
