"""Recommend stage: writes recommendations of a checkpoint on the workers, unless the same ones are there."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cluster.config.run_config import Config
from cluster.driver.evaluate_stage import find_checkpoint
from cluster.driver.other_data import check_encoding
from cluster.driver.output_stage import OutputStage, run_output_stage
from cluster.driver.progress import View
from cluster.driver.stage_inputs import recommend_inputs
from cluster.driver.train_stage import planned_job
from cluster.workers import jobs
from cluster.workers.group import Workers
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.data.dataset.hashing import whole
from trainer.data.dataset.manifest import Manifest, read_manifest, used_features
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.errors import UserError
from trainer.inference.moments import moment_of
from trainer.pages.text import duration_text
from trainer.recommend import folder as recommendations
from trainer.recommend.folder import FORMAT_VERSION, RecommendationsManifest
from trainer.recommend.given import distinct, read_given, unknown_values
from trainer.recommend.request import Options, PartCounts, RecommendRequest
from trainer.storage.objects.paths import path_of
from trainer.storage.parquet import write_parquet

STAGE = "recommend"
FOLDER = "recommendations"  # in the run folder
USERS_FILE = ".users.parquet"
ITEMS_FILE = ".items.parquet"


def run_recommend_stage(
    config: Config,
    options: Options,
    name: str | None,
    out: Path | None,
    workers: Workers,
    view: View,
    given: Config | None = None,
) -> tuple[RecommendationsManifest, Path]:
    """Return the description of the recommendations, and their folder.

    Args:
        config: of the run.
        options: what is asked for.
        name: of a checkpoint, as find_checkpoint takes it; None: the best.
        out: the folder to write; None: the one in the run folder.
        workers: launched only if the recommendations are not there.
        view: where progress is shown.
        given: the run's config with a dataset of given histories; None: those of the run's dataset.
    """
    check_options(config, options, given is not None)
    checkpoint = find_checkpoint(config, name, view.on_event)
    if given is not None:
        check_encoding(config, checkpoint, given)
        config = given
    manifest = read_manifest(config.dataset_dir)
    target = (config.run_dir / FOLDER if out is None else out).resolve()
    inputs = recommend_inputs(config, checkpoint, manifest, options)

    def described(attempt: Path, prepared: _Prepared, parts: list[PartCounts]) -> RecommendationsManifest:
        done = _described(config, options, checkpoint, manifest, inputs, prepared, parts)
        done = replace(done, files=recommendations.files_of(attempt))
        for left_over in (USERS_FILE, ITEMS_FILE):
            (attempt / left_over).unlink(missing_ok=True)
        return done

    stage = OutputStage(
        name=STAGE,
        inputs=inputs,
        target=target,
        read=recommendations.read_recommendations,
        new_attempt=recommendations.new_attempt,
        prepare=lambda attempt: _prepare(config, options, manifest, attempt, view),
        work=lambda prepared: _recommend(config, checkpoint, prepared.request, given is not None, workers, view),
        describe=described,
        commit=recommendations.commit,
        summary=_summary,
    )
    return run_output_stage(config.run_dir, stage, view)


def check_options(config: Config, options: Options, has_histories: bool = False) -> None:
    """Raise UserError for options that do not fit each other or the task.

    has_histories: whether histories of other logs are given.
    """
    ranks = config.model.task == "ranking"
    problem = None
    if options.k < 1:
        problem = f"--k {options.k}: must be at least 1"
    elif ranks and options.item_to_item:
        problem = "--item-to-item: a ranker has no vectors of items; use a model of the task next_item"
    elif ranks and options.items is None:
        problem = "--items: a ranker scores given candidates; give a file of items, with the features of impressions that it uses"
    elif not ranks and options.labels:
        problem = "--label: only models of impressions (model.task = ranking) have labels"
    elif options.item_to_item and options.users != "all":
        problem = "--users: --item-to-item recommends nothing to users; leave one of them out"
    elif options.item_to_item and options.at is not None:
        problem = "--at: similar items have no time; leave it out"
    elif options.item_to_item and has_histories:
        problem = "--history: similar items depend on no history; leave it out"
    if problem is not None:
        raise UserError(problem)


@dataclass(frozen=True)
class _Prepared:
    """A request with the counts of unknown values in its files."""

    request: RecommendRequest
    num_unknown_users: int = 0
    num_unknown_items: int = 0


def _prepare(config: Config, options: Options, manifest: Manifest, attempt: Path, view: View) -> _Prepared:
    """Check the files of users and items, and write them in one form for the workers."""
    ranks = config.model.task == "ranking"
    users, unknown_users = _users_file(config, options, manifest, attempt, view)
    items, unknown_items = _items_file(config, options, manifest, attempt, view)
    request = RecommendRequest(
        parts=attempt,
        k=options.k,
        filter_viewed=not ranks if options.filter_viewed is None else options.filter_viewed,
        item_to_item=options.item_to_item,
        at=None if options.at is None else moment_of(options.at, manifest, config.model),
        weights=_weights(options, manifest, config) if ranks else None,
        users=users,
        items=items,
    )
    return _Prepared(request, unknown_users, unknown_items)


def _users_file(
    config: Config, options: Options, manifest: Manifest, attempt: Path, view: View
) -> tuple[Path | None, int]:
    """Write the users with their rows in the dataset; return the file and the number of unknown users."""
    if options.users == "all":
        return None, 0
    known = RowGroupReader(config.dataset_dir, manifest, ColumnSelection(users=True)).users()
    column = config.logs.user
    given = distinct(read_given(path_of(options.users), column, known.type, "--users"), column)
    users = whole(given.column(column))
    unknown = unknown_values(users, known)
    popular = config.model.task == "next_item"
    then = "they get the most popular items" if popular else "they are left out"
    _react(options, unknown, f"--users {options.users}", "users without a history in the dataset", then, view)
    rows = pc.fill_null(pc.index_in(users, value_set=known), -1).cast(pa.int64())
    table = pa.table({"user": users, "row": rows})
    if options.on_unknown == "skip" or not popular:
        table = table.filter(pc.greater_equal(rows, 0))
    if not table.num_rows:
        raise UserError(f"--users {options.users}: the dataset has none of these users, so nothing can be recommended")
    write_parquet(table, attempt / USERS_FILE)
    return attempt / USERS_FILE, len(unknown)


def _items_file(
    config: Config, options: Options, manifest: Manifest, attempt: Path, view: View
) -> tuple[Path | None, int]:
    """Write the known items, each once; return the file and the number of unknown items."""
    if options.items is None:
        return None, 0
    known = read_vocabulary(config.dataset_dir, manifest, bool(used_features(manifest))).values
    column = config.logs.item
    given = distinct(read_given(path_of(options.items), column, known.type, "--items"), column)
    items = whole(given.column(column))
    unknown = unknown_values(items, known)
    _react(
        options, unknown, f"--items {options.items}", "items that the model does not know", "they are left out", view
    )
    given = given.filter(pc.is_in(items, value_set=known))
    if not given.num_rows:
        raise UserError(f"--items {options.items}: the model knows none of these items, so nothing can be recommended")
    write_parquet(given, attempt / ITEMS_FILE)
    return attempt / ITEMS_FILE, len(unknown)


def _react(options: Options, unknown: pa.Array, where: str, what: str, then: str, view: View) -> None:
    """Raise UserError or warn if there are unknown values."""
    if not len(unknown) or options.on_unknown == "skip":
        return
    some = ", ".join(repr(value) for value in unknown.slice(0, 3).to_pylist())
    message = f"{where}: {len(unknown):,} {what}, such as {some}"
    if options.on_unknown == "raise":
        raise UserError(f"{message}; leave them out, or use --on-unknown warn ({then}) or skip (they are left out)")
    view.on_event({"kind": "warning", "text": f"{message}; {then}"})


def _weights(options: Options, manifest: Manifest, config: Config) -> tuple[float, ...]:
    """Return the weight of each label that the model predicts."""
    from models.ranking.config import RankingConfig, learned_labels

    assert isinstance(config.model, RankingConfig)
    labels = tuple(learned_labels(config.model, tuple(manifest.labels["names"])))
    if not options.labels and len(labels) > 1:
        raise UserError(
            f"--label: the model predicts {', '.join(labels)}; choose one, or several with weights: NAME=WEIGHT"
        )
    weights = options.labels or {labels[0]: 1.0}
    unknown = [name for name in weights if name not in labels]
    if unknown:
        raise UserError(f"--label: the model predicts {', '.join(labels)}, and not {', '.join(unknown)}")
    return tuple(weights.get(name, 0.0) for name in labels)


def _recommend(
    config: Config,
    checkpoint: StoredCheckpoint,
    request: RecommendRequest,
    other_data: bool,
    workers: Workers,
    view: View,
) -> list[PartCounts]:
    """Run the job on the workers; return the counts of each."""
    job, _ = planned_job(config)
    checkpoint = StoredCheckpoint(checkpoint.path.resolve(), checkpoint.manifest)
    return workers.run(jobs.recommend, jobs.RecommendJob(job, checkpoint, request, other_data), view.on_event)


def _described(
    config: Config,
    options: Options,
    checkpoint: StoredCheckpoint,
    manifest: Manifest,
    inputs: str,
    prepared: _Prepared,
    parts: list[PartCounts],
) -> RecommendationsManifest:
    seconds = max(part.seconds for part in parts)
    num_users = sum(part.num_owners for part in parts)
    return RecommendationsManifest(
        format_version=FORMAT_VERSION,
        inputs=inputs,
        task=config.model.task,
        checkpoint=checkpoint.path.name,
        dataset=manifest.digest,
        options=asdict(replace(options, filter_viewed=prepared.request.filter_viewed)),
        at=prepared.request.at,
        num_users=num_users,
        num_popular=sum(part.num_popular for part in parts),
        num_unknown_users=prepared.num_unknown_users,
        num_unknown_items=prepared.num_unknown_items,
        num_rows=sum(part.num_rows for part in parts),
        seconds=seconds,
        users_per_second=num_users / max(seconds, 1e-9),
        num_workers=len(parts),
        files={},
    )


def _summary(done: RecommendationsManifest, seconds: float) -> str:
    owners = "items" if done.options["item_to_item"] else "users"
    popular = f", {done.num_popular:,} of them without a history" if done.num_popular else ""
    return (
        f"recommend: {done.num_rows:,} rows for {done.num_users:,} {owners}{popular} of {done.checkpoint} in "
        f"{duration_text(seconds)}, {done.users_per_second:,.0f} {owners}/s in batches"
    )
