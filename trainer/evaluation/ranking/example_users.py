"""Example users of a report: the history before their impressions, and what the model predicted of these. No torch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.dataset.manifest import Manifest, used_features
from trainer.data.logs.config import LogsConfig
from trainer.evaluation.examples import NUM_EVENTS, NUM_ITEMS, ItemNames, example_places, read_histories
from trainer.evaluation.merged_parts import ROW_ID
from trainer.evaluation.ranking.judged import probabilities
from trainer.evaluation.ranking.scored import Impressions
from trainer.evaluation.spooled import unique_keys


def examples_of(
    impressions: Impressions, folder: Path, manifest: Manifest, logs: LogsConfig | None, items: pa.Array
) -> list[dict[str, Any]]:
    """Return example users for the report: the history before their impressions, and what the model predicted of these.

    Args:
        impressions: the impressions of merge_parts.
        folder: the dataset.
        manifest: its manifest.
        logs: the settings of the logs, for titles of items.
        items: the value in the logs of each id from 1 on.
    """
    rows = unique_keys(impressions.column(ROW_ID))
    wanted = rows[example_places(rows.size)].tolist()
    histories = read_histories(folder, manifest, wanted, bool(used_features(manifest)))
    users = []
    for row_id, shown in _shown_to(impressions, wanted).items():
        history = histories[row_id]
        before = history.items[: np.searchsorted(history.times, shown[0]["time"], side="left")]
        users.append((shown, before))
    names = ItemNames(
        logs, items, (int(n) for shown, h in users for n in [*h[-NUM_EVENTS:], *(i["item"] for i in shown)])
    )
    return [
        {
            "user": str(shown[0]["user"]),
            "num_events": int(before.size),
            "history": [names[item] for item in before[-NUM_EVENTS:]],
            "impressions": [
                {
                    "item": names[row["item"]],
                    "labels": {label: _predicted(row, label) for label in impressions.labels},
                }
                for row in shown
            ],
        }
        for shown, before in users
    ]


def _predicted(row: dict[str, Any], label: str) -> dict[str, float | None]:
    """Return the model's probability of a label, and the label: 0, 1, or None where it is not defined."""
    outcome = row[f"label.{label}"]
    probability = float(probabilities(np.asarray(row[f"logit.{label}"], np.float64)))
    return {
        "probability": probability if math.isfinite(probability) else None,
        "outcome": None if math.isnan(outcome) else outcome,
    }


def _shown_to(impressions: Impressions, row_ids: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    """Return the first NUM_ITEMS impressions of some rows of the dataset, by row."""
    shown: dict[int, list[dict[str, Any]]] = {row_id: [] for row_id in row_ids}
    for table in impressions.rows.blocks(impressions.column_names):
        inside = pc.is_in(table.column(ROW_ID), value_set=pa.array(row_ids, pa.int64()))
        for row in table.filter(inside).to_pylist():
            shown[row[ROW_ID]].append(row)
    return {row_id: rows[:NUM_ITEMS] for row_id, rows in shown.items()}
