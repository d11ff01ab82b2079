"""Merges the workers' partial results into metrics.json and per_user.parquet. No torch: the driver calls it.

The parts are merged in the order of the dataset's rows before anything is summed, so no figure depends on the number of workers.
They are merged some users at a time. Lists, ranks and values of all users are in files, never in memory.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.config.evaluate import EvaluateConfig
from trainer.data.dataset.manifest import Feature, Manifest, used_features
from trainer.data.dataset.splits import Split
from trainer.data.logs.config import LogsConfig
from trainer.evaluation.examples import NUM_EVENTS, NUM_ITEMS, ItemNames, example_places, read_histories
from trainer.evaluation.metric import headline_names
from trainer.evaluation.next_item.figures import Figures, columns_of, figures_of_columns, joined_columns
from trainer.evaluation.next_item.list_metrics import RankedLists
from trainer.evaluation.next_item.merged_rows import MergedRows
from trainer.evaluation.next_item.metrics import METRICS
from trainer.evaluation.next_item.queries import columns_of_queries, figures_of_queries
from trainer.evaluation.next_item.similarity import Similarity
from trainer.evaluation.next_item.slices import (
    SINCE_LAST,
    TRAIN_LENGTH,
    USER_PREFIX,
    built_in_slices,
    first_targets_of,
    slices_by_features,
)
from trainer.evaluation.next_item.user_values import UserValues, intervals, means
from trainer.evaluation.part_writer import part_writer
from trainer.evaluation.protocol import data_of, statement_of
from trainer.evaluation.slices import Slice, worst_slices
from trainer.evaluation.spooled import spooled
from trainer.storage.files import write_json_atomically
from trainer.storage.objects.paths import remove_tree
from trainer.storage.parquet import open_parquet, parquet_metadata, parquet_schema

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


def baseline_names(merged: MergedRows) -> list[str]:
    """Return the names of the baselines of which there are ranks."""
    return [name.removesuffix("_ranks") for name in merged.column_names if name.endswith("_ranks")]


def summarize(
    merged: MergedRows, evaluated: Evaluated, features: Sequence[Feature] = (), folder: Path | None = None
) -> tuple[Results, dict[str, UserValues]]:
    """Return the results, and the model's metrics per user in the order of `merged`.

    Args:
        merged: the rows of merge_parts.
        evaluated: what was evaluated, and how.
        features: the features by which there are slices besides the built-in ones.
        folder: the dataset, with features.
    """
    ranked = count_targets(merged)
    model = _figures(merged, evaluated, "", ranked.num_targets)
    baselines = {}
    for name in baseline_names(merged):
        of = _figures(merged, evaluated, f"{name}_", ranked.num_targets)
        baselines[name] = replace(of, columns={})  # no longer needed
    slices = _slices(merged, evaluated, features, folder)
    metric = slice_metric(model.columns)
    results = Results(
        task="next_item",
        split=evaluated.split,
        checkpoint=evaluated.checkpoint,
        protocol=_protocol(evaluated),
        num_users=merged.num_rows,
        num_targets=ranked.num_targets,
        num_targets_not_rankable=ranked.num_not_rankable,
        metrics=model.metrics,
        ci95=model.ci95,
        baselines={name: of.metrics for name, of in baselines.items()},
        baselines_ci95={name: of.ci95 for name, of in baselines.items()},
        slices=[_slice(part, model.columns) for part in slices],
        worst_slices=worst_slices(slices, model.columns[metric].shares, metric),
    )
    return results, model.columns


@dataclass(frozen=True)
class TargetCounts:
    """Numbers of held-out events."""

    num_targets: int
    """All of them."""
    num_not_rankable: int
    """Those that cannot be ranked."""


def count_targets(merged: MergedRows) -> TargetCounts:
    """Count the targets of all users."""
    counts = np.zeros(2, dtype=np.int64)
    for block in merged.blocks(["ranks"]):
        ranks = _packed(block.column("ranks"))[1]
        counts += ranks.size, int((ranks == 0).sum())
    return TargetCounts(int(counts[0]), int(counts[1]))


def _figures(merged: MergedRows, evaluated: Evaluated, prefix: str, num_targets: int) -> Figures:
    """Return all metrics of the model, or of the baseline with columns of this prefix."""
    ks = evaluated.config.ks
    each = evaluated.config.targets == "each"
    length = merged.list_size(f"{prefix}top_items")
    lists = RankedLists(
        spooled((num_targets if each else merged.num_rows, length), np.int32),
        evaluated.train_events,
        evaluated.similarity,
    )

    def of_blocks() -> Iterator[dict[str, UserValues]]:
        stop = 0
        for block in merged.blocks(["targets", f"{prefix}ranks", f"{prefix}top_items"]):
            offsets, targets = _packed(block.column("targets"))
            top = _packed(block.column(f"{prefix}top_items"))[1].reshape(-1, length)
            start, stop = stop, stop + top.shape[0]
            lists.top_items[start:stop] = top
            ranks = _packed(block.column(f"{prefix}ranks"))[1]
            of = columns_of_queries if each else columns_of
            yield of(targets, ranks, offsets, replace(lists, top_items=top), ks)

    columns = joined_columns(merged.num_rows, of_blocks())
    return figures_of_queries(columns, lists, ks) if each else figures_of_columns(columns, lists, ks)


def _slices(merged: MergedRows, evaluated: Evaluated, features: Sequence[Feature], folder: Path | None) -> list[Slice]:
    """Return all slices. Their columns are read as a whole: some numbers of each user, but no lists."""
    numbers = [name for name in ("history_length", TRAIN_LENGTH, SINCE_LAST) if name in merged.column_names]
    rows = merged.to_table([*numbers, *(USER_PREFIX + f.column for f in features if f.owner == "user")])
    first_targets = np.concatenate([first_targets_of(block) for block in merged.blocks(["targets"])])
    train_events, config = evaluated.train_events, evaluated.config
    slices = built_in_slices(rows, first_targets, train_events, evaluated.ticks, config.slices)
    if folder is not None:
        manifest = evaluated.manifest
        unknown = bool(used_features(manifest))
        slices += slices_by_features(rows, first_targets, tuple(features), folder, manifest, unknown)
    return slices


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


def write(folder: Path, results: Results, merged: MergedRows, columns: dict[str, UserValues], items: pa.Array) -> None:
    """Write metrics.json and per_user.parquet (items as in the logs), and remove the workers' parts."""
    ranks = ["ranks", *(f"{name}_ranks" for name in baseline_names(merged))]
    shares = {name: values.shares_of() for name, values in columns.items()}
    stop = 0
    with part_writer(folder / "per_user.parquet", write_page_checksum=True) as writer:
        for block in merged.blocks(["user", "history_length", "targets", *ranks, "top_items"]):
            start, stop = stop, stop + block.num_rows
            table = {
                "user": block.column("user"),
                "history_length": block.column("history_length"),
                "targets": _item_values(block.column("targets"), items),
                **{name: block.column(name) for name in ranks},
                "top_items": _item_values(block.column("top_items"), items),
                **{name: pa.array(of_users(slice(start, stop))) for name, of_users in shares.items()},
            }
            writer.add(pa.table(table))
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


def _slice(part: Slice, columns: dict[str, UserValues]) -> dict[str, Any]:
    metrics: dict[str, float] = {}
    ci95: dict[str, list[float]] = {}
    for metric, values in columns.items():  # one at a time: each selection is a copy
        selected = {metric: values[part.inside]}
        metrics |= means(selected)
        ci95 |= intervals(selected)
    return {
        "name": part.name,
        "value": part.value,
        "num_users": int(part.inside.sum()),
        "metrics": metrics,
        "ci95": ci95,
    }


def read_target_ranks(folder: Path) -> dict[str, np.ndarray]:
    """Return how many targets have each rank in a per_user.parquet, from rank 0, by "model" and by the name of each baseline."""
    path = folder / "per_user.parquet"
    names = [name for name in parquet_schema(path).names if name == "ranks" or name.endswith("_ranks")]
    counts = {name: np.zeros(1, dtype=np.int64) for name in names}
    file = open_parquet(path)
    for number in range(file.num_row_groups):
        table = file.read_row_group(number, columns=names)
        for name in names:
            own = np.bincount(_packed(table.column(name))[1], minlength=counts[name].size)
            own[: counts[name].size] += counts[name]
            counts[name] = own
    return {"model" if name == "ranks" else name.removesuffix("_ranks"): of for name, of in counts.items()}


def examples_of(
    merged: MergedRows, split: Split, folder: Path, manifest: Manifest, logs: LogsConfig | None, items: pa.Array
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
    rows = merged.take(example_places(merged.num_rows)).to_pylist()
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
