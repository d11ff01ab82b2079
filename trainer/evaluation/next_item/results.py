"""Merges the workers' partial results into metrics.json and per_user.parquet. No torch: the driver calls it.

The parts are merged in the order of the dataset's rows before anything is summed, so no figure depends on the number of workers.
"""

import itertools
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.config.evaluate import EvaluateConfig
from trainer.data.dataset.manifest import Manifest, used_features
from trainer.data.dataset.splits import Split
from trainer.data.logs.config import LogsConfig
from trainer.errors import UserError
from trainer.evaluation.examples import NUM_EVENTS, NUM_ITEMS, ItemNames, example_places, read_histories
from trainer.evaluation.next_item.metrics import METRICS, intervals, list_metrics, means
from trainer.evaluation.next_item.queries import metrics_of_users, one_row_per_user
from trainer.evaluation.protocol import data_of, statement_of
from trainer.storage.files import renamed_when_whole, write_json_atomically

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
    """95 % confidence intervals by name of the metrics that are means over users."""
    baselines: dict[str, dict[str, float]]
    """Metrics by baseline."""
    baselines_ci95: dict[str, dict[str, list[float]]]
    """Intervals by baseline."""
    slices: list[dict[str, Any]]
    """Metrics of parts of the users: "name", "value", "num_users", "metrics", "ci95"."""


def num_repeats(parts: Path) -> int:
    """Return the number of targets that all workers dropped because the users had consumed them before."""
    schemas = [pq.read_schema(path) for path in parts.glob("rank-*.parquet")]
    return sum(int((schema.metadata or {}).get(NUM_REPEATS, 0)) for schema in schemas)


def merge_parts(parts: Path) -> pa.Table:
    """Return a row per user from the rows of all workers, sorted by row_id. Raises UserError if there are none."""
    tables = [pq.read_table(path) for path in sorted(parts.glob("rank-*.parquet"))]
    merged = pa.concat_tables(tables, promote_options="permissive") if tables else None
    if merged is None or merged.num_rows == 0:
        raise UserError(
            "evaluation: no user has held-out events in this split with events before them; "
            "use more logs, or move split.validation_time and split.test_time"
        )
    return one_row_per_user(merged.sort_by("row_id").combine_chunks())


def summarize(
    merged: pa.Table,
    split: str,
    checkpoint: str,
    config: EvaluateConfig,
    manifest: Manifest,
    train_events: np.ndarray,
    candidates: str = "full catalogue",
    num_repeats: int = 0,
) -> tuple[Results, dict[str, np.ndarray]]:
    """Return the results, and the model's metrics per user in the order of `merged`.

    Args:
        merged: the rows of merge_parts.
        split: the evaluated split.
        checkpoint: the name of the evaluated checkpoint.
        config: the settings of evaluation.
        manifest: the dataset's.
        train_events: (num_items,) training events of each item of the catalogue, by id.
        candidates: the candidates in words.
        num_repeats: targets that were dropped because their users had consumed them before.
    """
    offsets, targets = _packed(merged.column("targets"))
    _, target_ranks = _packed(merged.column("ranks"))
    _, popularity_ranks = _packed(merged.column("popularity_ranks"))
    each = config.targets == "each"
    columns = metrics_of_users(targets, target_ranks, offsets, config.ks, each)
    popularity = metrics_of_users(targets, popularity_ranks, offsets, config.ks, each)
    top = max(config.ks)
    num_items = train_events.size
    results = Results(
        task="next_item",
        split=split,
        checkpoint=checkpoint,
        protocol={
            "split": manifest.split,
            "catalogue": num_items,
            "candidates": candidates,
            "seen_items": "masked" if config.mask_seen else "ranked",
            "targets": config.targets,
            "repeats": "kept" if config.repeats == "keep" else f"{num_repeats:,} targets dropped",
            "ties": "smaller item id first",
            "trained_on": _trained_on(manifest),
            **data_of(manifest),
            "statement": statement_of(split, config, manifest, candidates),
        },
        num_users=merged.num_rows,
        num_targets=int(target_ranks.size),
        num_targets_not_rankable=int((target_ranks == 0).sum()),
        metrics=means(columns) | list_metrics(_matrix(merged.column("top_items"), top), config.ks, num_items),
        ci95=intervals(columns),
        baselines={
            "popularity": means(popularity)
            | list_metrics(_matrix(merged.column("popularity_top_items"), top), config.ks, num_items)
        },
        baselines_ci95={"popularity": intervals(popularity)},
        slices=_slices(columns, merged.column("history_length").to_numpy(), targets[offsets[:-1]], train_events),
    )
    return results, columns


def _trained_on(manifest: Manifest) -> str:
    """Return what the model was trained on, in words."""
    held_out = "the validation events are history at test time, never trained on"
    share = manifest.split.get("validation_share", 1.0)
    if share == 1.0:
        return f"training part only; {held_out}"
    return (
        f"training part only, to which the last event but one of all but {share:.1%} of the users belongs; {held_out}"
    )


def write(folder: Path, results: Results, merged: pa.Table, columns: dict[str, np.ndarray], items: pa.Array) -> None:
    """Write metrics.json and per_user.parquet (items as in the logs), and remove the workers' parts."""
    table = pa.table(
        {
            "user": merged.column("user"),
            "history_length": merged.column("history_length"),
            "targets": _item_values(merged.column("targets"), items),
            "ranks": merged.column("ranks"),
            "popularity_ranks": merged.column("popularity_ranks"),
            "top_items": _item_values(merged.column("top_items"), items),
            **{name: pa.array(values) for name, values in columns.items()},
        }
    )
    with renamed_when_whole(folder / "per_user.parquet") as path:
        pq.write_table(table, path, write_page_checksum=True)
    write_json_atomically(folder / "metrics.json", asdict(results))
    shutil.rmtree(folder / "parts", ignore_errors=True)


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


def _matrix(top_items: pa.ChunkedArray, top: int) -> np.ndarray:
    """Return the lists of top items of all queries as a matrix (queries, top)."""
    return _packed(top_items)[1].reshape(-1, top)


def _slices(
    columns: dict[str, np.ndarray], lengths: np.ndarray, first_targets: np.ndarray, train_events: np.ndarray
) -> list[dict[str, Any]]:
    """Return the metrics by quartile of history length and by popularity of the (first) target."""
    counts = np.concatenate(([0], train_events))[first_targets]
    by_length = np.quantile(lengths, [0.25, 0.5, 0.75])
    # Head, middle and tail: the items that make up the first and second third of all training events, and the rest.
    order = np.sort(train_events)[::-1]
    share = np.cumsum(order) / max(1, order.sum())
    cuts = np.minimum(np.searchsorted(share, np.asarray([1 / 3, 2 / 3])), order.size - 1)
    head, middle = int(order[cuts[0]]), int(order[cuts[1]])
    slices = []
    edges = [0, *(int(q) for q in by_length), int(lengths.max())]
    for low, high in itertools.pairwise(edges):
        slices.append(_slice("history_length", f"{low + 1}-{high}", columns, (lengths > low) & (lengths <= high)))
    for name, inside in (
        ("head", counts >= head),
        ("middle", (counts < head) & (counts >= middle)),
        ("tail", counts < middle),
    ):
        slices.append(_slice("target_popularity", name, columns, inside))
    return [entry for entry in slices if entry["num_users"]]


def _slice(name: str, value: str, columns: dict[str, np.ndarray], inside: np.ndarray) -> dict[str, Any]:
    selected = {metric: values[inside] for metric, values in columns.items()}
    return {
        "name": name,
        "value": value,
        "num_users": int(inside.sum()),
        "metrics": means(selected),
        "ci95": intervals(selected),
    }


def read_target_ranks(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks of all targets in a per_user.parquet, by the model and by popularity."""
    table = pq.read_table(folder / "per_user.parquet", columns=["ranks", "popularity_ranks"])
    return _packed(table.column("ranks"))[1], _packed(table.column("popularity_ranks"))[1]


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
