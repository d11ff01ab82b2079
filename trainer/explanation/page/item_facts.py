"""Items as people know them: the title where there is one, and the values of features with few words."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.config.job import Job
from trainer.data.dataset.manifest import Feature, Manifest
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.data.item_titles import item_titles
from trainer.evaluation.slice_features import MISSING_VALUE, in_unit_of_logs, item_values, labels_of

UNKNOWN = "an unknown item"
MOST_FEATURES = 4  # of an item that the page names
MOST_VALUES = 3  # of a feature with several values
KINDS = ("categorical", "categorical_list", "bucketized", "numeric")


@dataclass(frozen=True)
class Item:
    """An item as the page shows it."""

    title: str
    """Its title, or its value in the logs."""
    facts: str
    """Its features as text; empty without features."""


def item_facts(job: Job, manifest: Manifest, items: Iterable[object]) -> dict[object, Item]:
    """Return the titles and features of items, by their value in the logs. None stands for unknown items.

    Args:
        job: the run, with the files of items.
        manifest: the manifest of its dataset.
        items: values in the logs, or None.
    """
    wanted = sorted({item for item in items if item is not None}, key=str)
    titles = item_titles(job.config.logs, wanted)
    facts = _features(job, manifest, wanted)
    known: dict[object, Item] = {
        item: Item(titles.get(str(item), str(item)), text) for item, text in zip(wanted, facts, strict=True)
    }
    return {**known, None: Item(UNKNOWN, "")}


def _features(job: Job, manifest: Manifest, items: list[object]) -> list[str]:
    """Return the features of each item as text."""
    features = [f for f in manifest.features if f.owner == "item" and f.kind in KINDS][:MOST_FEATURES]
    if not features or not items:
        return [""] * len(items)
    known = read_vocabulary(job.dataset_dir, manifest, True).values
    place = pc.index_in(pa.array(items, known.type), value_set=known)
    ids = pc.fill_null(place, -1).to_numpy().astype(np.int64) + 1
    columns = [_texts(feature, ids, job, manifest) for feature in features]
    return [", ".join(text for text in row if text) for row in zip(*columns, strict=True)]


def _texts(feature: Feature, ids: np.ndarray, job: Job, manifest: Manifest) -> list[str]:
    """Return the value of a feature of each item as "name: value"; empty where it is missing."""
    values = item_values(feature, ids, job.dataset_dir, manifest, True)
    if feature.kind == "numeric":
        numbers = in_unit_of_logs(feature, values.to_numpy(zero_copy_only=False))
        return [f"{feature.name}: {number:.4g}" if np.isfinite(number) else "" for number in numbers.tolist()]
    lists = values.to_pylist()
    lists = [one if isinstance(one, list) else [] if one is None else [one] for one in lists]
    distinct = sorted({number for one in lists for number in one})
    labels = labels_of(feature, np.asarray(distinct, np.int64), job.dataset_dir, manifest)
    names = dict(zip(distinct, labels, strict=True))
    texts = []
    for one in lists:
        own = [names[number] for number in one if names[number] != MISSING_VALUE]
        more = " and more" if len(own) > MOST_VALUES else ""
        texts.append(f"{feature.name}: {', '.join(own[:MOST_VALUES])}{more}" if own else "")
    return texts
