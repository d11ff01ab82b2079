"""Explain stage: writes explanations of a checkpoint on the workers, and their page, unless the same ones are there."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.config.run_config import Config
from cluster.driver.evaluate_stage import find_checkpoint
from cluster.driver.output_stage import OutputStage, run_output_stage
from cluster.driver.progress import View
from cluster.driver.stage_inputs import explain_inputs
from cluster.driver.train_stage import planned_job
from cluster.workers import jobs
from cluster.workers.group import Workers
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.data.dataset.manifest import Manifest, read_manifest, used_features
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.errors import UserError
from trainer.explanation.command import folder as explanations
from trainer.explanation.command.folder import FORMAT_VERSION, ExplanationsManifest
from trainer.explanation.command.outputs import read_faithfulness, write_outputs
from trainer.explanation.command.request import SAMPLE, ExplainRequest, Options, PartResult
from trainer.explanation.command.selection import Selection, select
from trainer.inference.moments import moment_of
from trainer.pages.text import duration_text
from trainer.recommend.folder import new_attempt
from trainer.recommend.given import distinct, listed, read_given, unknown_values
from trainer.storage.objects.paths import path_of
from trainer.storage.parquet import write_parquet

STAGE = "explain"
FOLDER = "explanations"  # in the run folder
USERS_FILE = ".users.parquet"
MOST_NAMED = 3  # unknown users that a message names


def run_explain_stage(
    config: Config, options: Options, name: str | None, out: Path | None, workers: Workers, view: View
) -> tuple[ExplanationsManifest, Path]:
    """Return the description of the explanations, and their folder.

    Args:
        config: of the run.
        options: what is asked for.
        name: of a checkpoint, as find_checkpoint takes it; None: the best.
        out: the folder to write; None: the one in the run folder.
        workers: launched only if the explanations are not there.
        view: where progress is shown.
    """
    check_options(config, options)
    checkpoint = find_checkpoint(config, name, view.on_event)
    manifest = read_manifest(config.dataset_dir)
    target = (config.run_dir / FOLDER if out is None else out).resolve()
    selection = select(options.method, read_faithfulness(target, checkpoint.path.name, manifest.digest))
    inputs = explain_inputs(config, checkpoint, manifest, options)

    def described(attempt: Path, request: ExplainRequest, parts: list[PartResult]) -> ExplanationsManifest:
        (attempt / USERS_FILE).unlink()
        done = _described(config, options, checkpoint, manifest, inputs, selection, request, parts)
        write_outputs(planned_job(config)[0], manifest, attempt, done, parts)
        return replace(done, files=explanations.files_of(attempt))

    stage = OutputStage(
        name=STAGE,
        inputs=inputs,
        target=target,
        read=explanations.read_explanations,
        new_attempt=lambda folder: new_attempt(folder, explanations.MANIFEST, "explanations"),
        prepare=lambda attempt: _request(config, options, manifest, selection, attempt),
        work=lambda request: _explain(config, checkpoint, request, workers, view),
        describe=described,
        commit=explanations.commit,
        summary=_summary,
    )
    return run_output_stage(config.run_dir, stage, view)


def check_options(config: Config, options: Options) -> None:
    """Raise UserError for options that do not fit each other or the task."""
    problem = None
    pair = options.user is not None or options.item is not None
    if options.k < 1:
        problem = f"--k {options.k}: must be at least 1"
    elif options.sample is not None and options.sample < 1:
        problem = f"--sample {options.sample}: must be at least 1"
    elif options.shown < 1:
        problem = f"--shown {options.shown}: must be at least 1"
    elif pair and (options.user is None or options.item is None):
        problem = "--user and --item: name both, a user and the item that is explained to it"
    elif pair and (options.users is not None or options.sample is not None):
        problem = "--user and --item: explain one pair; leave out --users and --sample"
    elif options.users is not None and options.sample is not None:
        problem = "--users and --sample: choose one of them"
    elif options.label is not None and config.model.task != "ranking":
        problem = "--label: only models of impressions (model.task = ranking) have labels"
    if problem is not None:
        raise UserError(problem)


def _request(
    config: Config, options: Options, manifest: Manifest, selection: Selection, attempt: Path
) -> ExplainRequest:
    """Check users and item, and write the users in one form for the workers."""
    write_parquet(_users(config, options, manifest), attempt / USERS_FILE)
    return ExplainRequest(
        parts=attempt,
        users=attempt / USERS_FILE,
        item=None if options.item is None else _item_id(config, options.item, manifest),
        methods=selection.methods,
        k=options.k,
        filter_viewed=True if options.filter_viewed is None else options.filter_viewed,
        at=None if options.at is None else moment_of(options.at, manifest, config.model),
        label=options.label,
        removal=options.removal,
        seed=options.seed,
        measure=options.measure,
    )


def _users(config: Config, options: Options, manifest: Manifest) -> pa.Table:
    """Return the chosen users with their rows in the dataset. Raises UserError for a user that the dataset does not have."""
    known = RowGroupReader(config.dataset_dir, manifest, ColumnSelection(users=True)).users()
    if options.users is None and options.user is None:
        number = min(SAMPLE if options.sample is None else options.sample, len(known))
        rows = np.sort(np.random.default_rng(options.seed).choice(len(known), number, replace=False))
        return pa.table({"user": known.take(pa.array(rows)), "row": rows})
    column = config.logs.user
    if options.user is not None:
        option, given = "--user", pa.table({column: listed([options.user], known.type, "--user")})
    elif options.users is not None and path_of(options.users).exists():
        option = f"--users {options.users}"
        given = read_given(path_of(options.users), column, known.type, "--users")
    else:
        names = [name.strip() for name in (options.users or "").split(",") if name.strip()]
        option, given = "--users", pa.table({column: listed(names, known.type, "--users")})
    users = distinct(given, column).column(column).combine_chunks()
    unknown = unknown_values(users, known)
    if len(unknown):
        named = ", ".join(str(value) for value in unknown.slice(0, MOST_NAMED).to_pylist())
        raise UserError(
            f"{option}: the dataset has no history of {len(unknown):,} of {len(users):,} users, such as {named}; "
            "give users of the dataset, or a file that exists"
        )
    return pa.table({"user": users, "row": pc.index_in(users, value_set=known).cast(pa.int64())})


def _item_id(config: Config, item: str, manifest: Manifest) -> int:
    """Return the id of an item as in the logs. Raises UserError for an item that the model does not know."""
    known = read_vocabulary(config.dataset_dir, manifest, bool(used_features(manifest))).values
    place = pc.index_in(listed([item], known.type, "--item"), value_set=known)[0].as_py()
    if place is None:
        raise UserError(f"--item {item}: the model does not know this item; give an item of the training data")
    return int(place) + 1


def _explain(
    config: Config, checkpoint: StoredCheckpoint, request: ExplainRequest, workers: Workers, view: View
) -> list[PartResult]:
    """Run the job on the workers; return the result of each. Raises UserError if nothing could be explained."""
    job, _ = planned_job(config)
    checkpoint = StoredCheckpoint(checkpoint.path.resolve(), checkpoint.manifest)
    parts: list[PartResult] = workers.run(jobs.explain, jobs.ExplainJob(job, checkpoint, request), view.on_event)
    if not sum(part.num_questions for part in parts):
        what = "impression of the item" if request.item is not None else "impression"
        missing = (
            f"event before the request and no {what}" if config.model.task == "ranking" else "event before the request"
        )
        raise UserError(f"explain: none of the users has an {missing}, so there is nothing to explain")
    return parts


def _described(
    config: Config,
    options: Options,
    checkpoint: StoredCheckpoint,
    manifest: Manifest,
    inputs: str,
    selection: Selection,
    request: ExplainRequest,
    parts: list[PartResult],
) -> ExplanationsManifest:
    return ExplanationsManifest(
        format_version=FORMAT_VERSION,
        inputs=inputs,
        task=config.model.task,
        checkpoint=checkpoint.path.name,
        dataset=manifest.digest,
        options=asdict(options),
        methods=list(selection.methods),
        why_method=selection.why,
        at=request.at,
        num_users=sum(part.num_users for part in parts),
        num_without=sum(part.num_without for part in parts),
        num_questions=sum(part.num_questions for part in parts),
        num_rows=sum(part.num_rows for part in parts),
        seconds=max(part.seconds for part in parts),
        num_workers=len(parts),
        files={},
    )


def _summary(done: ExplanationsManifest, seconds: float) -> str:
    without = f", {done.num_without:,} without one" if done.num_without else ""
    return (
        f"explain: {done.num_questions:,} items explained to {done.num_users:,} users{without} of {done.checkpoint} by "
        f"{', '.join(done.methods)} in {duration_text(seconds)}"
    )
