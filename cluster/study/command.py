"""`shoal study`: plan all trials, prepare the dataset, run what is not done, write the table and the plots.

study.dir/  dataset/  trials/NAME/ (a run folder each, with trial.json)
            results.json  results.csv  table.md  plot.svg  plot.png  study.html
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from cluster.driver.progress import View
from cluster.study import outputs
from cluster.study.collect import read_trial
from cluster.study.config import read_study
from cluster.study.costing import costs_of_points
from cluster.study.record import Record, digest_for, is_current, read_record
from cluster.study.summary import Summary, summarize
from cluster.study.trials import Plan, plan_trials, refuse_other_trials
from trainer.data.dataset.manifest import Manifest
from trainer.errors import UserError
from trainer.output_folder import writing

if TYPE_CHECKING:
    from cluster.study.trial import Task
    from trainer.data.dataset.splits import Split


@dataclass(frozen=True)
class Answer:
    """What a study came to; `ran` and `kept`: trials that were run, and that were done before."""

    plan: Plan
    summary: Summary
    page: Path
    ran: list[str]
    kept: list[str]


def plan(path: str, overrides: Sequence[str]) -> Plan:
    """All trials of a study file, checked against what lies in its folder. Raises UserError with all that is wrong."""
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
            view.say(f"study: {len(done)} of {len(planned.trials)} trials were done before")
        if tasks:
            limit = min(planned.study.max_concurrent or most_at_once(clusters), len(tasks))
            view.say(f"study: {len(tasks)} trials, {limit} at a time")
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
    """Every dataset of the study, made or found."""
    from cluster.driver import driver

    manifests = {}
    for folder, config in planned.datasets().items():
        manifests[folder] = manifest = driver.prepare_dataset(config, view)
        if not manifest.counts.validation_targets:
            raise UserError(
                f"dataset {folder}: has no validation targets, by which a study ranks; use more logs, or another split"
            )
    return manifests


def _splits(planned: Plan, manifest: Manifest) -> "tuple[Split, ...]":
    return ("validation", "test") if planned.study.test and manifest.counts.test_targets else ("validation",)


def _sorted_out(planned: Plan, manifests: dict[Path, Manifest]) -> "tuple[list[Task], dict[str, Record]]":
    """The trials that are to be run, as tasks, and the records of those that are done."""
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
            tasks.append(Task(trial, digest, splits, planned.study.keep_checkpoints))
    return tasks, done


def dry_run(planned: Plan) -> list[dict[str, Any]]:
    """One line per point: settings, parameters, FLOPs; nothing is run or written."""
    costs = costs_of_points(planned)
    return [
        {
            "point": point.title,
            "settings": point.settings,
            "trials": [trial.name for trial in planned.of_point(number)],
            "costs": asdict(cost),
        }
        for number, (point, cost) in enumerate(zip(planned.points, costs, strict=True))
    ]


def print_dry_run(planned: Plan, lines: list[dict[str, Any]], console: Console) -> None:
    table = _plain_table()
    table.add_column("point")
    for heading in ("trials", "dense parameters", "table parameters", "forward FLOPs/event", "training FLOPs/event"):
        table.add_column(heading, justify="right")
    for line in lines:
        figures = [
            f"{line['costs'][name]:,.0f}"
            for name in ("dense_parameters", "table_parameters", "forward_flops_per_event", "training_flops_per_event")
        ]
        table.add_row(line["point"], str(len(line["trials"])), *figures)
    console.print(table)
    if any(line["costs"]["assumed"] for line in lines):
        given = planned.study.assumed
        history = f"{given.history} events" if given.history else "model.max_history events"
        note = (
            f"the dataset is not prepared: {given.items:,} items and histories of {history} are assumed (study.assumed)"
        )
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    number = len(planned.trials)
    text = f"{len(planned.points)} points with {len(planned.study.seeds)} seeds: {number} trials in {planned.file.folder}/trials"
    console.print(text, highlight=False, soft_wrap=True)


def print_for_people(answer: Answer, console: Console) -> None:
    """The table in short, failures, and where the whole lies."""
    table = _plain_table()
    table.add_column("point", min_width=12)
    for heading in outputs.named(outputs.BRIEF_HEADINGS, answer.summary.metric):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in answer.summary.rows:
        table.add_row(row.title, *outputs.brief_cells(row))
    console.print(table)
    if answer.summary.effects:
        effects = _plain_table()
        for place, heading in enumerate(outputs.named(outputs.EFFECT_HEADINGS, answer.summary.metric)):
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
    """One object for programs: results.json, and what this command did."""
    return {
        **outputs.results_values(answer.plan, answer.summary),
        "ran": answer.ran,
        "kept": answer.kept,
        "failed": answer.summary.failed,
        "page": str(answer.page),
    }
