"""What the settings' tests look at: from a file with `--set` to datasets and trainings in this process, without Ray.

Everything that entries share is made once: a dataset for each set of logs, an observation for each config.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from pydantic import BaseModel

import cluster.data.prepare
from cluster.config.file import apply_override, read_values
from cluster.config.run_config import Config, job_of, load_config
from cluster.plan.workload import WorkloadConfig, check_workload
from cluster.ray_cluster.task_pool import TaskLimit
from cluster.study.config import StudyConfig, StudyFile, read_study
from sharding.world import World, current_world
from tests.settings.entry import Settings, toml
from tests.settings.logs import DAY, START, write_logs
from tests.support.rank_pool import RankPool
from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.synthetic.impression_world import ImpressionConfig
from trainer.data.synthetic.world import SyntheticConfig
from trainer.storage.files import digest_of

_RUN = """
[model]
max_history = 6
[model.encoder]
num_blocks = 1
dropout = 0.0
[tables.item]
dim = 8
sharding = "row_wise"
init_std = 0.5
[train]
epochs = 2
batch_size = 8
log_every_steps = 1
[evaluate]
ks = [2, 5, 10]
batch_size = 8
[plan]
measure = false
[cluster]
num_workers = 1
prepare_tasks = 1
"""
_EVENTS = '[logs]\npath = "LOGS/events.parquet"\n'
_IMPRESSIONS = f"""
[logs]
path = "LOGS/impressions.parquet"
labels = ["click"]
outcomes = ["conversion", "like"]
history_label = "click"
[split]
kind = "global_time"
validation_time = {START + 6 * DAY}
test_time = {START + 7 * DAY}
"""
_STUDY = """
[study]
dir = "LOGS/study"
[study.grid]
"model.max_history" = [4, 6]
"""
_WORKLOAD = """
batch_size = 64
[topology]
devices = 16
preset = "a100-80gb"
[[table]]
name = "item"
rows = 1_000_000
dim = 128
"""


@dataclass(frozen=True)
class SettingsKind:
    """Where settings of a kind come from. model: what they are checked by; prefix: of the keys of entries, not in the file."""

    model: type[BaseModel]
    text: str
    prefix: str = ""


WORLDS = {
    "events": SettingsKind(Config, _EVENTS + _RUN),
    "impressions": SettingsKind(Config, _IMPRESSIONS + _RUN),
    "study": SettingsKind(StudyConfig, _STUDY + _EVENTS + _RUN, "study"),
    "workload": SettingsKind(WorkloadConfig, _WORKLOAD, "workload"),
    "synth": SettingsKind(
        SyntheticConfig, "num_users = 40\nnum_items = 120\nmean_events_per_user = 12.0\nnum_patterns = 10\n", "synth"
    ),
    "synth impressions": SettingsKind(
        ImpressionConfig, "num_users = 60\nnum_items = 60\nmean_impressions_per_user = 40.0\n", "synth_impressions"
    ),
}


class Lab:
    """A folder with logs, and one rank in this process. `pool` gives the rank processes for what one rank cannot show."""

    def __init__(self, folder: Path, world: World, pool: Callable[[], RankPool]) -> None:
        self.folder, self.world = folder, world
        self._pool = pool
        self.logs = folder / "logs"
        write_logs(self.logs)
        for name, world in WORLDS.items():
            self._file(name).write_text(world.text.replace("LOGS", str(self.logs)), encoding="utf-8")
        self._datasets: dict[str, Path] = {}
        self._seen: dict[tuple[Any, str], Any] = {}
        self._num_folders = 0

    def _file(self, world: str) -> Path:
        return self.folder / f"{world.replace(' ', '_')}.toml"

    def settings(self, world: str, given: Settings) -> Any:
        """Return the settings of a file, overridden as `--set` does; paths may begin with LOGS."""
        path, prefix = self._file(world), WORLDS[world].prefix
        overrides = [f"{key}={toml(value)}".replace("LOGS", str(self.logs)) for key, value in given.items()]
        if world == "study":
            return read_study(path, overrides)
        overrides = [override.removeprefix(f"{prefix}.") for override in overrides]
        if not prefix:
            return load_config(path, overrides)
        values = read_values(path)
        if world == "workload":
            return check_workload(values, str(path), overrides)
        for override in overrides:
            apply_override(override, values)
        return WORLDS[world].model.model_validate(values)

    def see(self, observe: Callable[["Lab", Any], Any], settings: Any) -> Any:
        """Return the result of an observation; computed once for equal settings."""
        key = observe, digest_of(plain(settings))
        if key not in self._seen:
            torch.manual_seed(0)
            self._seen[key] = observe(self, settings)
        return self._seen[key]

    def on_two_ranks(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run function(ranks, *arguments) on two ranks in processes of their own; return their results."""
        return self._pool().run(2, function, *arguments)

    def new_folder(self) -> Path:
        """Return a folder that nobody else uses."""
        self._num_folders += 1
        folder = self.folder / f"folder-{self._num_folders}"
        folder.mkdir()
        return folder

    def dataset(self, config: Config) -> Path:
        """Return the folder of the dataset of a config, prepared in this process."""
        made_of = {"logs": config.logs, "split": config.split, **config.ids_of_tables}
        key = digest_of({name: part.model_dump(mode="json") for name, part in made_of.items()})
        if key not in self._datasets:
            self._datasets[key] = self.new_folder() / "dataset"
            self.prepare(config, self._datasets[key])
        return self._datasets[key]

    def prepare(self, config: Config, folder: Path, limits: list[TaskLimit] | None = None) -> Manifest:
        """Prepare a dataset; `limits` receives the number of tasks that may run at a time. Raises UserError as the command does."""
        run = config.run.model_copy(update={"dataset": str(folder)})
        with _without_ray([] if limits is None else limits):
            return cluster.data.prepare.prepare(config.model_copy(update={"run": run}), lambda _: None)

    def manifest(self, config: Config) -> Manifest:
        """Return the manifest of the dataset."""
        return read_manifest(self.dataset(config))

    def job(self, config: Config) -> Job:
        """Return the job of the workers, with its own run folder."""
        return replace(job_of(config), run_dir=self.new_folder(), dataset_dir=self.dataset(config))


def plain(settings: Any) -> Any:
    """Return settings as plain values."""
    if isinstance(settings, StudyFile):
        return {"study": settings.study.model_dump(mode="json"), "values": settings.values}
    return {"of": type(settings).__name__, **settings.model_dump(mode="json")}


def model_of(settings: Any) -> BaseModel:
    """Return the checked model in what a world's settings are."""
    return settings.study if isinstance(settings, StudyFile) else settings


@contextmanager
def one_rank() -> Iterator[World]:
    """Yield this process as the only rank of a group, for the body."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield current_world(torch.device("cpu"))
    finally:
        dist.destroy_process_group()


@contextmanager
def _without_ray(limits: list[TaskLimit]) -> Iterator[None]:
    """Run the tasks of prepare one after another in this process; nobody looks at the card's pictures."""

    def run_tasks(
        task: Callable[[Any, int], Any], argument: Any, numbers: Iterable[int], limit: TaskLimit
    ) -> Generator[tuple[int, Any], None, None]:
        limits.append(limit)
        for number in numbers:
            yield number, task(argument, number)

    with (
        mock.patch.object(cluster.data.prepare, "run_tasks", run_tasks),
        mock.patch.object(cluster.data.prepare.card, "write", return_value=None),
    ):
        yield
