"""Preparing small logs in tests, and reading datasets back as plain Python values, for comparison with plain references."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.exceptions import RayError

from cluster.config.run_config import Config, check_config
from cluster.data.prepare import prepare
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.stream.row_groups import Column, ColumnSelection, Lists, RowGroupReader
from trainer.errors import UserError


def write_table(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    """Return a Parquet file of columns (Python values or Arrow arrays)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: v if isinstance(v, pa.Array) else pa.array(v) for name, v in columns.items()}
    pq.write_table(pa.table(arrays), path, **options)
    return path


def write_events(path: Path, events: list[tuple[Any, ...]], *names: str, **options: Any) -> Path:
    """Return a Parquet log of (user, item, time, further columns ...)."""
    columns = zip(*events, strict=True)
    return write_table(
        path, dict(zip(("user_id", "item_id", "time", *names), map(list, columns), strict=True)), **options
    )


def config_at(tmp_path: Path, dataset: str = "dataset", tasks: int | None = None, **sections: Any) -> Config:
    """Return a config of the logs in tmp_path/logs; `logs` and other sections override."""
    logs = {"path": str(tmp_path / "logs"), **sections.pop("logs", {})}
    run, cluster = {"dataset": str(tmp_path / dataset)}, {"prepare_tasks": tasks}
    return check_config({"run": run, "logs": logs, "cluster": cluster, **sections}, "test")


def made(config: Config) -> Manifest:
    return prepare(config, lambda _: None)


def refusal(config: Config) -> str:
    """Return the message of the one error that a user sees, not Ray's wrapper with its traceback."""
    with pytest.raises(UserError) as caught:
        made(config)
    assert not isinstance(caught.value, RayError)
    return str(caught.value)


@dataclass(frozen=True)
class Row:
    """One user. events: (item, time, features by name); impressions: (item, time, history_end, labels, features)."""

    events: list[tuple[Any, int, dict[str, Any]]]
    impressions: list[tuple[Any, int, int, dict[str, float], dict[str, Any]]]
    features: dict[str, Any]
    train_end: int
    validation_end: int
    number: int

    @property
    def history(self) -> list[tuple[Any, int]]:
        return [(item, time) for item, time, _ in self.events]


def vocabulary(config: Config, table: str = "item") -> list[Any]:
    """Return values by number, None for 0."""
    manifest = read_manifest(config.dataset_dir)
    path = config.dataset_dir / manifest.vocabularies[table].path
    return [None, *pq.read_table(path).column("value").to_pylist()]


def item_ids(config: Config) -> dict[Any, int]:
    """Return the model's id of every item."""
    manifest = read_manifest(config.dataset_dir)
    table = pq.read_table(config.dataset_dir / manifest.vocabulary.path)
    return dict(zip(table.column("value").to_pylist(), table.column("id").to_pylist(), strict=True))


def rows_by_user(config: Config) -> dict[Any, Row]:
    """Return the whole dataset as a reader gives it, items by their values."""
    manifest = read_manifest(config.dataset_dir)
    ranking = manifest.task == "ranking"
    wanted = ColumnSelection(users=True, times=True, features=True, impressions=ranking, numbers=True)
    reader = RowGroupReader(config.dataset_dir, manifest, wanted)
    items = vocabulary(config)
    rows: dict[Any, Row] = {}
    for group in range(len(reader.group_rows)):
        held = reader.read([group])[group]
        assert held.users is not None
        assert held.times is not None
        cuts = reader.cuts(group)
        assert [c.tolist() for c in cuts] == [held.train_end.tolist(), held.validation_end.tolist()]
        for place, user in enumerate(held.users.to_pylist()):
            events = [
                (items[held.items[k]], int(held.times[k]), entry(held.features, k))
                for k in range(held.starts[place], held.ends[place])
            ]
            shown = held.impressions
            impressions = [
                (
                    items[shown.items[k]],
                    int(shown.times[k]),
                    int(shown.history_end[k]),
                    entry(shown.labels, k),
                    entry(shown.features, k),
                )
                for k in (range(shown.starts[place], shown.ends[place]) if shown is not None else ())
            ]
            assert user not in rows
            number = int(reader.first_rows[group]) + place
            ends = int(held.train_end[place]), int(held.validation_end[place])
            rows[user] = Row(events, impressions, entry(held.user_features, place), *ends, number)
    assert len(rows) == manifest.num_rows == manifest.counts.num_users
    return rows


def entry(columns: Any, place: int) -> dict[str, Any]:
    return {name: value_at(column, place) for name, column in columns.items()}


def value_at(column: Column, place: int) -> Any:
    if isinstance(column, Lists):
        return column.values[column.offsets[place] : column.offsets[place + 1]].tolist()
    value = column[place]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def rejected_rows(config: Config, generation: int = 0) -> list[tuple[str, int, str]]:
    """Return (file name, row, reason) of every quarantined row."""
    path = config.dataset_dir / f"rejected-{generation:03d}.parquet"
    if not path.exists():
        return []
    return [(Path(row["file"]).name, row["row"], row["reason"]) for row in pq.read_table(path).to_pylist()]
