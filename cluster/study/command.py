"""`shoal study`: plan all trials, prepare the dataset, run what is not done, write the table and the plots.

study.dir/  dataset/  trials/NAME/ (a run folder each, with trial.json)
            results.json  results.csv  table.md  plot.svg  plot.png  study.html
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from cluster.config.run_config import Config
from cluster.driver.progress import View
from cluster.study import outputs
from cluster.study.collect import read_trial
from cluster.study.config import read_study
from cluster.study.costing import costs_of_points, unit_of
from cluster.study.record import Record, digest_for, is_current, read_record
from cluster.study.summary import Summary, summarize
from cluster.study.trials import Plan, metric_in, plan_trials, refuse_other_trials
from models.ranking.config import RankingConfig, learned_labels
from trainer.data.dataset.manifest import Manifest
from trainer.errors import UserError
from trainer.evaluation.ranking.names import name_among
from trainer.output_folder import writing

if TYPE_CHECKING:
    from cluster.study.trial import Task
    from trainer.data.dataset.splits import Split


@dataclass(frozen=True)
class Answer:
    """Outcome of a study; `ran` and `kept`: trials that were run, and that were done before."""

    plan: Plan
    summary: Summary
    page: Path
    ran: list[str]
    kept: list[str]


def plan(path: str, overrides: Sequence[str]) -> Plan:
    """Return all trials of a study file, checked against the contents of its folder. Raises UserError that lists every error."""
    planned = plan_trials(read_study(path, list(overrides)))
    refuse_other_trials(planned)
    return planned


def run(planned: Plan, view: View) -> Answer:
    """Run what is not done yet. A trial that fails is reported, and does not end the others."""
    folder = planned.file.folder
    with writing(folder, f"study.dir {folder}", "running this study", "", "choose another study.dir"):
        return _run(planned, view)


def _run(planned: Plan, view: View) -> Answer:
    # Here, because they load ray and torch, which a study that is refused needs neither of.
    from cluster.ray_cluster.session import check_resources, ray_session
    from cluster.study.execute import in_order, most_at_once, run_tasks

    clusters = [trial.config.cluster for trial in planned.trials]
    ended: dict[str, Record] = {}
    with ray_session(clusters[0]):
        for cluster in clusters:
            check_resources(cluster)
        manifests = _prepared(planned, view)
        tasks, done = _sorted_out(planned, manifests)
        if done:
            view.print_line(f"study: {len(done)} of {len(planned.trials)} trials were done before")
        if tasks:
            limit = min(planned.study.max_concurrent or most_at_once(clusters), len(tasks))
            view.print_line(f"study: {len(tasks)} trials, {limit} at a time")
            ended = run_tasks(in_order(tasks), limit, view)
    done |= {name: record for name, record in ended.items() if record.status == "done"}
    failed = {name: record.reason for name, record in ended.items() if record.status != "done"}
    finished = {
        trial.name: read_trial(
            trial, done[trial.name], _splits(planned, manifests[trial.config.dataset_dir]), planned.study.metric
        )
        for trial in planned.trials
        if trial.name in done
    }
    summary = summarize(planned, finished, failed, costs_of_points(planned))
    page = outputs.write(planned, summary)
    return Answer(planned, summary, page, list(ended), [name for name in done if name not in ended])


def _prepared(planned: Plan, view: View) -> dict[Path, Manifest]:
    """Return the manifest of every dataset of the study, made or found."""
    from cluster.driver.prepare_stage import prepare_dataset

    manifests = {}
    for folder, config in planned.datasets().items():
        manifests[folder] = manifest = prepare_dataset(config, view)
        if not manifest.counts.validation_targets:
            raise UserError(
                f"dataset {folder}: has no validation targets, by which a study ranks; use more logs, or another split"
            )
        refuse_without_positives(config, planned.study.metric, manifest)
    return manifests


def refuse_without_positives(config: Config, metric: str, manifest: Manifest) -> None:
    """Raise UserError if a ranker's metric needs positives of its label and the validation split has none, before anything runs."""
    name, _, label = metric.partition("/")
    if not isinstance(config.model, RankingConfig) or name == "logloss":
        return
    labels = tuple(learned_labels(config.model, config.logs.labels))
    label = label or labels[0]
    if not manifest.labels["positives"][label]["validation"]:
        raise UserError(
            f"dataset {config.dataset_dir}: no impression of the validation split has a {label} above 0, so study.metric = "
            f"{metric!r} is not defined there; use more logs, another split, or study.metric = "
            f'"{name_among(f"logloss/{label}", labels)}"'
        )


def _splits(planned: Plan, manifest: Manifest) -> "tuple[Split, ...]":
    return ("validation", "test") if planned.study.test and manifest.counts.test_targets else ("validation",)


def _sorted_out(planned: Plan, manifests: dict[Path, Manifest]) -> "tuple[list[Task], dict[str, Record]]":
    """Return the pending trials as tasks, and the records of the finished ones."""
    from cluster.study.trial import Task

    tasks, done = [], {}
    for trial in planned.trials:
        manifest = manifests[trial.config.dataset_dir]
        splits = _splits(planned, manifest)
        digest = digest_for(trial, manifest.digest, list(splits))
        record = read_record(trial.config.run_dir)
        if record is not None and is_current(record, trial.config.run_dir, digest, splits):
            done[trial.name] = record
        else:
            metric = metric_in(trial.config, planned.study.metric)
            tasks.append(Task(trial, digest, splits, planned.study.keep_checkpoints, metric))
    return tasks, done


def dry_run(planned: Plan) -> list[dict[str, Any]]:
    """Return one line per point with settings, parameters and FLOPs; nothing is run or written."""
    costs = costs_of_points(planned)
    return [
        {
            "point": point.title,
            "settings": point.settings,
            "trials": [trial.name for trial in planned.of_point(number)],
            "costs": cost.values(),
        }
        for number, (point, cost) in enumerate(zip(planned.points, costs, strict=True))
    ]


def print_dry_run(planned: Plan, lines: list[dict[str, Any]], console: Console) -> None:
    table, unit = _plain_table(), unit_of(planned.trials[0].config)
    table.add_column("point")
    for heading in (
        "trials",
        "dense parameters",
        "table parameters",
        f"forward FLOPs per {unit}",
        f"training FLOPs per {unit}",
    ):
        table.add_column(heading, justify="right")
    names = ("dense_parameters", "table_parameters", f"forward_flops_per_{unit}", f"training_flops_per_{unit}")
    for line in lines:
        figures = [f"{line['costs'][name]:,.0f}" for name in names]
        table.add_row(line["point"], str(len(line["trials"])), *figures)
    console.print(table)
    if any(line["costs"]["assumed"] for line in lines):
        given = planned.study.assumed
        history = f"{given.history} events" if given.history else "model.max_history events"
        shown = f" with {given.impressions} impressions each" if unit == "impression" else ""
        note = f"the dataset is not prepared: {given.items:,} items and histories of {history}{shown} are assumed (study.assumed)"
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    number = len(planned.trials)
    text = f"{len(planned.points)} points with {len(planned.study.seeds)} seeds: {number} trials in {planned.file.folder}/trials"
    console.print(text, highlight=False, soft_wrap=True)


def print_for_people(answer: Answer, console: Console) -> None:
    """Print a short table, the failures, and the path of the full results."""
    table = _plain_table()
    table.add_column("point", min_width=12)
    for heading in outputs.named(outputs.BRIEF_HEADINGS, answer.summary):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in answer.summary.rows:
        table.add_row(row.title, *outputs.brief_cells(row))
    console.print(table)
    if answer.summary.effects:
        effects = _plain_table()
        for place, heading in enumerate(outputs.named(outputs.EFFECT_HEADINGS, answer.summary)):
            effects.add_column(heading, justify="left" if place < 2 else "right")
        for effect in answer.summary.effects:
            effects.add_row(*outputs.effect_cells(effect))
        console.print(effects)
    for name, reason in answer.summary.failed.items():
        console.print(f"failed: {name}: {reason}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"page: {answer.page}", highlight=False, soft_wrap=True)


def _plain_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))


def json_of(answer: Answer) -> dict[str, Any]:
    """Return one object for programs: results.json, and what this command did."""
    return {
        **outputs.results_values(answer.plan, answer.summary),
        "ran": answer.ran,
        "kept": answer.kept,
        "failed": answer.summary.failed,
        "page": str(answer.page),
    }
