"""Merges the workers' partial results into metrics.json and per_user.parquet. No torch: the driver calls it.

The parts are merged in the order of the dataset's rows before anything is summed, so no figure depends on the number of workers.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.config.evaluate import EvaluateConfig
from trainer.data.dataset.manifest import Manifest, used_features
from trainer.data.dataset.splits import Split
from trainer.data.logs.config import LogsConfig
from trainer.errors import UserError
from trainer.evaluation.examples import NUM_EVENTS, NUM_ITEMS, ItemNames, example_places, read_histories
from trainer.evaluation.metric import headline_names
from trainer.evaluation.next_item.figures import Figures, figures_of
from trainer.evaluation.next_item.list_metrics import RankedLists
from trainer.evaluation.next_item.metrics import METRICS
from trainer.evaluation.next_item.queries import figures_of_queries, one_row_per_user
from trainer.evaluation.next_item.similarity import Similarity
from trainer.evaluation.next_item.slices import built_in_slices
from trainer.evaluation.next_item.user_values import UserValues, intervals, means
from trainer.evaluation.protocol import data_of, statement_of
from trainer.evaluation.slices import Slice, worst_slices
from trainer.storage.files import renamed_when_whole, write_json_atomically
from trainer.storage.objects.paths import remove_tree
from trainer.storage.parquet import parquet_metadata, parquet_schema, read_parquet, write_parquet

NUM_REPEATS = b"num_repeats"  # in the metadata of a part: targets that were dropped as repeats


@dataclass(frozen=True)
class Results:
    """The content of metrics.json: one object per split and checkpoint."""

    task: str
    """Always "next_item"."""
    split: str
    """"validation" or "test"."""
    checkpoint: str
    """Name of the checkpoint's folder."""
    protocol: dict[str, Any]
    """Protocol of the figures: split, candidates, ties and so on."""
    num_users: int
    """Users with targets in the split."""
    num_targets: int
    """Held-out events."""
    num_targets_not_rankable: int
    """Targets that are unknown to the training part, or seen and masked; they count as missed."""
    metrics: dict[str, float]
    """Metrics of the model by name."""
    ci95: dict[str, list[float]]
    """95 % confidence intervals by name."""
    baselines: dict[str, dict[str, float]]
    """Metrics by baseline."""
    baselines_ci95: dict[str, dict[str, list[float]]]
    """Intervals by baseline."""
    slices: list[dict[str, Any]]
    """Metrics of parts of the users: "name", "value", "num_users", "metrics", "ci95"."""
    worst_slices: dict[str, Any] = field(default_factory=dict)
    """Slices that are significantly worse than all others, and the test (trainer.evaluation.slices.worst_slices)."""
    baseline_notes: dict[str, dict[str, str]] = field(default_factory=dict)
    """"used": a description of each baseline; "left_out": the reason of each that does not fit. Both by name."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation: what was evaluated, and how."""

    split: Split
    """The evaluated split."""
    checkpoint: str
    """Name of the evaluated checkpoint."""
    config: EvaluateConfig
    """Settings of evaluation."""
    manifest: Manifest
    """Manifest of the dataset."""
    train_events: np.ndarray
    """(num_items,) training events of each item of the catalogue, by id."""
    candidates: str
    """The candidates in words."""
    ticks: int | None = None
    """Ticks per second of the logs' times; None if these are not clock times."""
    similarity: Similarity | None = None
    """Similarity of items; None leaves out metrics of diversity."""
    num_repeats: int = 0
    """Targets that were dropped because their users had consumed them before."""


def num_repeats(parts: Path) -> int:
    """Return the number of targets that all workers dropped because the users had consumed them before."""
    files = [parquet_metadata(path) for path in parts.glob("rank-*.parquet")]
    return sum(int((file.metadata or {}).get(NUM_REPEATS, 0)) for file in files)


def merge_parts(parts: Path) -> pa.Table:
    """Return a row per user from the rows of all workers, sorted by row_id. Raises UserError if there are none."""
    tables = [read_parquet(path) for path in sorted(parts.glob("rank-*.parquet"))]
    merged = pa.concat_tables(tables, promote_options="permissive") if tables else None
    if merged is None or merged.num_rows == 0:
        raise UserError(
            "evaluation: no user has held-out events in this split with events before them; "
            "use more logs, or move split.validation_time and split.test_time"
        )
    return one_row_per_user(merged.sort_by("row_id").combine_chunks())


def baseline_names(table: pa.Table) -> list[str]:
    """Return the names of the baselines of which merge_parts, or a per_user.parquet, has ranks."""
    return [name.removesuffix("_ranks") for name in table.column_names if name.endswith("_ranks")]


def summarize(
    merged: pa.Table, evaluated: Evaluated, by_features: Sequence[Slice] = ()
) -> tuple[Results, dict[str, UserValues]]:
    """Return the results, and the model's metrics per user in the order of `merged`.

    Args:
        merged: the rows of merge_parts.
        evaluated: what was evaluated, and how.
        by_features: slices besides the built-in ones.
    """
    config, train_events = evaluated.config, evaluated.train_events
    offsets, targets = _packed(merged.column("targets"))

    def figures(ranks: str, top_items: str) -> Figures:
        num_lists = targets.size if config.targets == "each" else merged.num_rows
        lists = RankedLists(_matrix(merged.column(top_items), num_lists), train_events, evaluated.similarity)
        of = figures_of_queries if config.targets == "each" else figures_of
        return of(targets, _packed(merged.column(ranks))[1], offsets, lists, config.ks)

    _, target_ranks = _packed(merged.column("ranks"))
    model = figures("ranks", "top_items")
    baselines = {name: figures(f"{name}_ranks", f"{name}_top_items") for name in baseline_names(merged)}
    slices = built_in_slices(merged, targets[offsets[:-1]], train_events, evaluated.ticks, config.slices)
    slices += by_features
    metric = slice_metric(model.columns)
    results = Results(
        task="next_item",
        split=evaluated.split,
        checkpoint=evaluated.checkpoint,
        protocol=_protocol(evaluated),
        num_users=merged.num_rows,
        num_targets=int(target_ranks.size),
        num_targets_not_rankable=int((target_ranks == 0).sum()),
        metrics=model.metrics,
        ci95=model.ci95,
        baselines={name: of.metrics for name, of in baselines.items()},
        baselines_ci95={name: of.ci95 for name, of in baselines.items()},
        slices=[_slice(part, model.columns) for part in slices],
        worst_slices=worst_slices(slices, model.columns[metric].shares, metric),
    )
    return results, model.columns


def _protocol(evaluated: Evaluated) -> dict[str, Any]:
    """Return what was ranked, against what and how."""
    config, manifest, similarity = evaluated.config, evaluated.manifest, evaluated.similarity
    return {
        "split": manifest.split,
        "catalogue": evaluated.train_events.size,
        "candidates": evaluated.candidates,
        "seen_items": "masked" if config.mask_seen else "ranked",
        "targets": config.targets,
        "repeats": "kept" if config.repeats == "keep" else f"{evaluated.num_repeats:,} targets dropped",
        "ties": "smaller item id first",
        "trained_on": _trained_on(manifest),
        **({} if similarity is None else {"item_similarity": similarity.basis}),
        **data_of(manifest),
        "statement": statement_of(evaluated.split, config, manifest, evaluated.candidates),
    }


def slice_metric(names: Iterable[str]) -> str:
    """Return the metric by which slices are compared: ndcg where it was evaluated."""
    headlines = headline_names(METRICS, names)
    return next((name for name in headlines if name.startswith("ndcg@")), headlines[0])


def _trained_on(manifest: Manifest) -> str:
    """Return what the model was trained on, in words."""
    held_out = "the validation events are history at test time, never trained on"
    share = manifest.split.get("validation_share", 1.0)
    if share == 1.0:
        return f"training part only; {held_out}"
    return (
        f"training part only, to which the last event but one of all but {share:.1%} of the users belongs; {held_out}"
    )


def write(folder: Path, results: Results, merged: pa.Table, columns: dict[str, UserValues], items: pa.Array) -> None:
    """Write metrics.json and per_user.parquet (items as in the logs), and remove the workers' parts."""
    table = pa.table(
        {
            "user": merged.column("user"),
            "history_length": merged.column("history_length"),
            "targets": _item_values(merged.column("targets"), items),
            "ranks": merged.column("ranks"),
            **{f"{name}_ranks": merged.column(f"{name}_ranks") for name in baseline_names(merged)},
            "top_items": _item_values(merged.column("top_items"), items),
            **{name: pa.array(values.shares) for name, values in columns.items()},
        }
    )
    with renamed_when_whole(folder / "per_user.parquet") as path:
        write_parquet(table, path, write_page_checksum=True)
    write_json_atomically(folder / "metrics.json", asdict(results))
    remove_tree(folder / "parts", ignore_errors=True)


def _packed(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return (offsets (n + 1,), values) of a list column."""
    lengths = pc.list_value_length(column).to_numpy()
    values = pc.list_flatten(column).to_numpy()
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), values


def _item_values(column: pa.ChunkedArray, items: pa.Array) -> pa.Array:
    """Return lists of ids as lists of the items' values in the logs; id 0 (unknown, or no item left) becomes null."""
    offsets, ids = _packed(column)
    index = pa.array(ids - 1, mask=ids == 0)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), items.take(index))


def _matrix(top_items: pa.ChunkedArray, num_lists: int) -> np.ndarray:
    """Return the lists of top items of all queries, which are equally long, as a matrix (queries, length)."""
    return _packed(top_items)[1].reshape(num_lists, -1)


def _slice(part: Slice, columns: dict[str, UserValues]) -> dict[str, Any]:
    selected = {metric: values[part.inside] for metric, values in columns.items()}
    return {
        "name": part.name,
        "value": part.value,
        "num_users": int(part.inside.sum()),
        "metrics": means(selected),
        "ci95": intervals(selected),
    }


def read_target_ranks(folder: Path) -> dict[str, np.ndarray]:
    """Return the ranks of all targets in a per_user.parquet, by "model" and by the name of each baseline."""
    path = folder / "per_user.parquet"
    names = [name for name in parquet_schema(path).names if name == "ranks" or name.endswith("_ranks")]
    table = read_parquet(path, columns=names)
    return {
        "model" if name == "ranks" else name.removesuffix("_ranks"): _packed(table.column(name))[1] for name in names
    }


def examples_of(
    merged: pa.Table, split: Split, folder: Path, manifest: Manifest, logs: LogsConfig | None, items: pa.Array
) -> list[dict[str, Any]]:
    """Return example users for the report: history, targets with their ranks, and the model's recommendations.

    Args:
        merged: the rows of merge_parts.
        split: the evaluated split.
        folder: the dataset.
        manifest: its manifest.
        logs: the settings of the logs, for titles of items.
        items: the value in the logs of each id from 1 on.
    """
    rows = merged.take(pa.array(example_places(merged.num_rows))).to_pylist()
    unknown = bool(used_features(manifest))
    histories = read_histories(folder, manifest, [row["row_id"] for row in rows], unknown)
    seen = {}
    for row in rows:
        history = histories[row["row_id"]]
        seen[row["row_id"]] = history.items[: history.train_end if split == "validation" else history.validation_end]
    shown = [seen[row["row_id"]][-NUM_EVENTS:].tolist() + row["targets"] + row["top_items"][:NUM_ITEMS] for row in rows]
    names = ItemNames(logs, items, itertools.chain.from_iterable(shown))
    return [
        {
            "user": str(row["user"]),
            "num_events": int(seen[row["row_id"]].size),
            "history": [names[item] for item in seen[row["row_id"]][-NUM_EVENTS:]],
            "targets": [
                {"item": names[item], "rank": rank}
                for item, rank in zip(row["targets"][:NUM_ITEMS], row["ranks"], strict=False)
            ],
            "recommended": [
                {"item": names[item], "is_target": item in row["targets"]}
                for item in row["top_items"][:NUM_ITEMS]
                if item
            ],
        }
        for row in rows
    ]


def table_names(results: Results) -> tuple[list[str], bool]:
    """Return the rows of the table, metric by metric, and whether recall@K was left out because it equals hr@K.

    With one target per user both are the same number, so one row says it.
    """
    one_target = results.num_targets == results.num_users
    shown = [metric for metric in METRICS if not (one_target and metric.name == "recall")]
    return [name for metric in shown for name in results.metrics if metric.matches(name)], len(shown) < len(METRICS)
