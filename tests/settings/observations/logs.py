"""What the settings' tests see of a dataset that prepare makes of logs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster.config.run_config import Config
from models.features.catalogue import IdColumn
from tests.settings.lab import Lab
from tests.settings.logs import DAY, START
from trainer.data.dataset.manifest import Feature, read_manifest
from trainer.data.stream.catalogue_reader import read_catalogue
from trainer.data.stream.columns import Lists
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.errors import UserError

Observe = Callable[[Lab, Config], Any]


def count(name: str) -> Observe:
    """Return the observation of one of the manifest's counts."""

    def observe(lab: Lab, config: Config) -> int:
        return int(getattr(lab.manifest(config).counts, name))

    observe.__name__ = f"the count {name}"
    return observe


def rejected(lab: Lab, config: Config) -> list[str]:
    """Return the reasons for which rows were rejected."""
    return sorted(lab.manifest(config).counts.rejected)


def rows_read(lab: Lab, config: Config) -> int | str:
    """Return the number of rows that were read, or that the logs were refused."""
    try:
        return lab.manifest(config).counts.rows_read
    except UserError:
        return "refused"


def histories(lab: Lab, config: Config) -> dict[str, list[str]]:
    """Return the items of each user in order, by the values that the logs have."""
    folder, manifest = lab.dataset(config), lab.manifest(config)
    items = [None, *pq.read_table(folder / manifest.vocabulary.path).column("value").to_pylist()]
    result = {}
    for packed in _packed(lab, config):
        assert packed.users is not None
        for place, user in enumerate(packed.users.to_pylist()):
            result[user] = [items[n] for n in packed.items[packed.starts[place] : packed.ends[place]].tolist()]
    return result


def longest(lab: Lab, config: Config) -> int:
    """Return the number of events of the longest history."""
    return max(len(history) for history in histories(lab, config).values())


def labels(lab: Lab, config: Config) -> list[str]:
    """Return the labels of a dataset for ranking."""
    names: list[str] = lab.manifest(config).labels["names"]
    return names


def kept_share(lab: Lab, config: Config) -> float:
    """Return the recorded share of impressions without any label that the log kept."""
    return float(lab.manifest(config).labels.get("negative_sampling_rate", 1.0))


def owners(lab: Lab, config: Config) -> list[str]:
    """Return who has features."""
    return sorted({feature.owner for feature in lab.manifest(config).features})


def _thing(lab: Lab, config: Config) -> Feature:
    [feature] = [feature for feature in lab.manifest(config).features if feature.name == "thing"]
    return feature


def thing(name: str) -> Observe:
    """Return the observation of what the manifest says of the feature `thing`."""

    def observe(lab: Lab, config: Config) -> Any:
        return getattr(_thing(lab, config), name)

    observe.__name__ = f"the {name} of the feature"
    return observe


def values(lab: Lab, config: Config) -> list[Any]:
    """Return the values of the feature `thing` as a model receives them, one per event, item or user."""
    feature = _thing(lab, config)
    if feature.owner == "item":
        return _values_of_items(lab, config, feature)
    result: list[Any] = []
    for packed in _packed(lab, config):
        columns = packed.features if feature.owner == "event" else packed.user_features
        result += _listed(columns["thing"])
    return result


def _values_of_items(lab: Lab, config: Config, feature: Feature) -> list[Any]:
    folder = lab.dataset(config)
    manifest = read_manifest(folder)
    if feature.kind == "timestamp":  # kept, and no model receives it
        assert manifest.items is not None
        result: list[Any] = pq.read_table(folder / manifest.items.path).column(feature.column).to_pylist()
        return result
    return _listed(read_catalogue(folder, manifest, config.tables, config.model).columns["thing"])


def _packed(lab: Lab, config: Config) -> list[Any]:
    folder, manifest = lab.dataset(config), lab.manifest(config)
    wanted = ColumnSelection(users=True, features=True, numbers=True, impressions=manifest.task == "ranking")
    reader = RowGroupReader(folder, manifest, wanted)
    return [reader.read([group])[group] for group in range(len(reader.group_rows))]


def _listed(column: Any) -> list[Any]:
    if isinstance(column, Lists | IdColumn):
        parts = np.split(column.values, column.offsets[1:-1])
        return [part.tolist() for part in parts]
    return np.asarray(column).tolist()  # type: ignore[no-any-return]


def longest_value(lab: Lab, config: Config) -> int:
    """Return the largest number of values that the feature `thing` has."""
    return max(len(value) for value in values(lab, config))


def cuts(lab: Lab, config: Config) -> dict[str, tuple[int, int]]:
    """Return for each user how many events train, and how many come before the test part."""
    result = {}
    for packed in _packed(lab, config):
        ends = zip(packed.users.to_pylist(), packed.train_end.tolist(), packed.validation_end.tolist(), strict=True)
        result |= {user: (train_end, validation_end) for user, train_end, validation_end in ends}
    return result


def cuts_at(first_day: int, second_day: int) -> Observe:
    """Return the same by hand, where both parts begin so many days after the first event may."""

    def by_hand(lab: Lab, config: Config) -> dict[str, tuple[int, int]]:
        events = pq.read_table(lab.logs / "events.parquet").select(["user_id", "item_id", "time"]).to_pylist()
        distinct = {tuple(event.values()) for event in events}
        bounds = START + first_day * DAY, START + second_day * DAY
        result = {user: [0, 0] for user, _, _ in distinct}
        for user, _, time in distinct:
            for place, bound in enumerate(bounds):
                result[user][place] += time < bound
        return {user: (first, second) for user, (first, second) in result.items()}

    return by_hand


def number_marks_of_history(setting: str) -> Observe:
    """Return the observation of a mark in numbers that the text files of the history are read with."""

    def observe(lab: Lab, config: Config) -> str | None:
        mark: str | None = getattr(config.logs.text_of("history"), setting)
        return mark

    observe.__name__ = f"the history's {setting}"
    return observe
