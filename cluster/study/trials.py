"""From a study to its trials: every one named, every config checked, before anything starts. No torch, no ray.

A point is a variant together with one combination of the grid, or one random draw; a trial is a point under one seed.
"""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.config.run_config import Config, check_config
from cluster.study.config import RangeConfig, StudyConfig, StudyFile, with_settings
from models.ranking.config import RankingConfig, learned_labels
from trainer.config.identity import identity, is_among
from trainer.errors import UserError
from trainer.evaluation.ranking.names import name_among
from trainer.settings import changed_settings
from trainer.storage.files import digest_of
from trainer.tasks.metrics import selection_names

# What a study sets itself.
RESERVED = ("run", "study", "base")
# What the dataset is made of. Points that differ in it have a dataset each.
OF_DATASET = ("logs", "split", "tables.*.ids")


@dataclass(frozen=True)
class Point:
    """name: as plots and folders call it; label: the variant that it belongs to; settings: config keys to values, as given.

    detail: what a name that is only a number stands for.
    """

    name: str
    label: str
    settings: dict[str, Any]
    detail: str = ""

    @property
    def title(self) -> str:
        """As tables show it."""
        return f"{self.name}: {self.detail}" if self.detail else self.name


@dataclass(frozen=True)
class Trial:
    """One run. name: of its folder in trials/; point: number of the point that it is of."""

    name: str
    point: int
    seed: int
    config: Config


@dataclass(frozen=True)
class Plan:
    """Points and trials of a study, sorted by point."""

    file: StudyFile
    points: tuple[Point, ...]
    trials: tuple[Trial, ...]

    @property
    def study(self) -> StudyConfig:
        return self.file.study

    def of_point(self, number: int) -> list[Trial]:
        return [trial for trial in self.trials if trial.point == number]

    def datasets(self) -> dict[Path, Config]:
        """Return each dataset that is trained on, with a config that prepares it."""
        return {trial.config.dataset_dir: trial.config for trial in reversed(self.trials)}


def plan_trials(file: StudyFile) -> Plan:
    """Return the plan of a study. Raises UserError that lists every error: keys, values, equal points, trials of another study."""
    study = file.study
    points = _points(study)
    number = len(points) * len(study.seeds)
    if number > study.max_trials:
        raise UserError(
            f"study {file.origin}: {len(points)} points with {len(study.seeds)} seeds are {number} trials, and "
            f"study.max_trials = {study.max_trials}; take fewer values, or raise it"
        )
    complaints: list[str] = []
    trials: list[Trial] = []
    names: dict[str, int] = {}  # of folders, and below digests: the first point that has it
    first_of: dict[str, int] = {}
    for place, point in enumerate(points):
        try:
            configs = [_config_of(file, point, seed) for seed in study.seeds]
        except UserError as error:
            complaints.append(f"{point.name}: {error}")
            continue
        slug = _slug(point.name)
        same = first_of.setdefault(digest_of(what_it_is(configs[0])), place)
        namesake = names.setdefault(slug, place)
        if same != place:
            complaints.append(f"{point.name}: is the same run as {points[same].name}")
        elif namesake != place:
            complaints.append(
                f"{point.name}: its folder {slug} is that of {points[namesake].name}; give variants clearer names"
            )
        for seed, config in zip(study.seeds, configs, strict=True):
            name = f"{slug}-seed{seed}"
            run = {"dir": str(file.folder / "trials" / name), "seed": seed, "dataset": config.run.dataset}
            trials.append(Trial(name, place, seed, check_config({**config.model_dump(mode="json"), "run": run}, name)))
    complaints += _metric_complaint(study, trials)
    if complaints:
        raise UserError(f"study {file.origin}: nothing was started.\n  " + "\n  ".join(dict.fromkeys(complaints)))
    return Plan(file, tuple(points), tuple(_on_datasets(file, trials)))


def _metric_complaint(study: StudyConfig, trials: list[Trial]) -> list[str]:
    """Return what is wrong with the metric: the first trial that is not measured by it says it for all that have its metrics."""
    setting = f"study.metric = {study.metric!r}"
    for trial in trials:
        measured = metrics_of(trial.config)
        if metric_in(trial.config, study.metric) in measured:
            continue
        _, _, cut_off = study.metric.partition("@")
        if cut_off and not isinstance(trial.config.model, RankingConfig):
            return [f"{setting} needs {cut_off} among evaluate.ks"]
        return [f"{setting} is no metric of {trial.name}; its model has {', '.join(measured)}"]
    return []


def metrics_of(config: Config) -> list[str]:
    """Return the metrics by which trials of a config can be ranked, as its evaluation calls them."""
    labels = tuple(learned_labels(config.model, config.logs.labels)) if isinstance(config.model, RankingConfig) else ()
    return selection_names(config.model.task, config.evaluate.ks, labels)


def metric_in(config: Config, metric: str) -> str:
    """Return what the evaluation of a config calls a metric of the study. A model of one label leaves the label out."""
    if not isinstance(config.model, RankingConfig):
        return metric
    return name_among(metric, tuple(learned_labels(config.model, config.logs.labels)))


def refuse_other_trials(plan: Plan) -> None:
    """Raise UserError if a trial's folder holds a run with other settings than the study asks for."""
    for trial in plan.trials:
        path = trial.config.run_dir / "config.json"
        try:
            saved = check_config(json.loads(path.read_text(encoding="utf-8")), str(path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except ValueError as error:
            raise UserError(f"{path}: is not JSON ({error}); delete the folder to run that trial again") from None
        changed = changed_settings(what_it_is(saved), what_it_is(trial.config))
        if changed:
            lines = "\n  ".join(changed)
            raise UserError(
                f"study.dir {plan.study.dir}: the trial {trial.name} was run with other settings:\n  {lines}\n"
                "set them back, choose another study.dir, or delete the folder of that trial"
            )


def what_it_is(config: Config) -> dict[str, Any]:
    """Return the flat settings that decide a trial's results. They include the end of training, because trials are compared."""
    from trainer.settings import flatten

    ends = ("train.epochs", "train.max_steps", "train.evaluate_every_epochs", "train.early_stopping", "evaluate.*")
    flat = flatten(config.model_dump(mode="json"))
    speed = ("cluster.num_workers", "cluster.cpus_per_worker", "cluster.gpus_per_worker")  # events/s are compared too
    return identity(config) | {key: value for key, value in flat.items() if is_among(key, (*ends, *speed))}


def _points(study: StudyConfig) -> list[Point]:
    variants = [(variant.name, variant.settings) for variant in study.variants] or [("", {})]
    settings = list(_grid(study) if study.kind == "grid" else _draws(study))
    short = short_names(list(settings[0]))
    width = len(str(len(settings)))
    points = []
    for name, fixed in variants:
        for number, drawn in enumerate(settings, start=1):
            what, detail = ", ".join(_named(short[key], value) for key, value in drawn.items()), ""
            if study.kind == "random":
                what, detail = f"point {number:0{width}d}", what
            full = ", ".join(part for part in (name, what) if part) or "base"
            points.append(Point(full, name or what or "base", {**fixed, **drawn}, detail))
    return points


def _grid(study: StudyConfig) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*study.grid.values()):
        yield dict(zip(study.grid, values, strict=True))


def _draws(study: StudyConfig) -> Iterator[dict[str, Any]]:
    """Point n is drawn from (seed, n), so that asking for more points leaves the first ones as they were."""
    assert study.random is not None
    for number in range(study.random.points):
        generator = np.random.default_rng([study.random.seed, number])
        yield {key: _draw(range_, generator) for key, range_ in study.random.ranges.items()}


def _draw(range_: RangeConfig, generator: np.random.Generator) -> Any:
    if range_.choice is not None:
        return range_.choice[int(generator.integers(len(range_.choice)))]
    if range_.integers is not None:
        return int(generator.integers(range_.integers[0], range_.integers[1] + 1))
    if range_.uniform is not None:
        return _rounded(float(generator.uniform(*range_.uniform)))
    assert range_.log_uniform is not None
    low, high = np.log(range_.log_uniform)
    return _rounded(float(np.exp(generator.uniform(low, high))))


def _rounded(value: float) -> float:
    """Round to four digits, so that the printed value is the value that is run."""
    return float(f"{value:.4g}")


def _config_of(file: StudyFile, point: Point, seed: int) -> Config:
    """Return the config of a point. Raises UserError that says what is wrong with its settings."""
    for key in point.settings:
        if is_among(key, RESERVED):
            raise UserError(f"{key}: a study sets [run] itself; seeds come from study.seeds")
    try:
        values = with_settings(file.values, point.settings)
    except ValueError as error:
        raise UserError(str(error)) from None
    run = values.get("run", {})
    dataset = run.get("dataset") if isinstance(run, dict) else None
    return check_config({**values, "run": {"seed": seed, "dataset": dataset}}, file.origin)


def _on_datasets(file: StudyFile, trials: list[Trial]) -> Iterator[Trial]:
    """Set the dataset of each trial.

    The first dataset is study.dir/dataset, or run.dataset; one with other settings gets a folder named by their hash.
    """
    folders: dict[str, str] = {}
    for trial in trials:
        flat = what_it_is(trial.config)
        made_of = digest_of({key: value for key, value in flat.items() if is_among(key, OF_DATASET)})
        name = "dataset" if not folders else f"dataset-{made_of[:8]}"
        given = trial.config.run.dataset if not folders else None
        folder = folders.setdefault(made_of, given or str(file.folder / name))
        run = trial.config.run.model_copy(update={"dataset": folder})
        yield Trial(trial.name, trial.point, trial.seed, trial.config.model_copy(update={"run": run}))


def short_names(keys: list[str]) -> dict[str, str]:
    """Return, for each config key, as many of its last parts as tell it from the others: encoder.num_blocks and num_blocks."""
    found = {}
    for key in keys:
        parts = key.split(".")
        for length in range(1, len(parts) + 1):
            short = ".".join(parts[-length:])
            if sum(other == short or other.endswith(f".{short}") for other in keys) == 1:
                break
        found[key] = short
    return found


def _named(key: str, value: Any) -> str:
    """Return a setting as text: "num_blocks 2", but for kinds the kind alone."""
    return _shown(value) if key == "kind" or isinstance(value, dict) else f"{key} {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("kind") or json.dumps(value))
    return value if isinstance(value, str) else json.dumps(value)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+=]+", "-", name).strip("-.") or "point"
