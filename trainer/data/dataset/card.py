"""card.html and card.json: what a person, or a program, should know of a dataset before anything is trained on it.

Both are made from the finished dataset and its manifest alone, belong to exactly that content (`digest`), and are part of neither:
a dataset without its card is whole.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from trainer.data.dataset.card_plots import plots_of
from trainer.data.dataset.checks import Check, checks_of, profile_values, split_sizes
from trainer.data.dataset.leakage import leaky_features
from trainer.data.dataset.log_checks import log_checks, times_as_read
from trainer.data.dataset.manifest import Feature, Manifest
from trainer.data.dataset.profile import SPLITS
from trainer.data.dataset.splits import time_as_text
from trainer.pages import page
from trainer.storage.files import write_json_atomically, write_text_atomically

PAGE, VALUES = "card.html", "card.json"
CARD_VERSION = 2  # raise it when the card of the same dataset would say something else
NUM_EXAMPLES = 10  # of quarantined rows
NUM_LISTED_FILES = 200

Ints = npt.NDArray[np.int64]


def write(folder: Path, manifest: Manifest) -> None:
    """Write both into the dataset folder. Raises OSError if the disk does not take them."""
    facts = facts_of(folder, manifest)
    write_text_atomically(folder / PAGE, render(folder, manifest, facts))
    write_json_atomically(folder / VALUES, facts)


def read_checks(folder: Path, manifest: Manifest) -> tuple[Check, ...] | None:
    """The checks on the card of this very dataset; None if it has none, one of before an append, or one of another version."""
    try:
        values = json.loads((folder / VALUES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    of_card = [values.get(name) for name in ("digest", "fingerprint", "version")]
    current = of_card == [manifest.digest, manifest.fingerprint, CARD_VERSION]
    if not current or not (folder / PAGE).exists():
        return None
    return tuple(Check(**check) for check in values["checks"])


def facts_of(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Everything on the card as plain values."""
    values = profile_values(manifest)
    catalogue = _Catalogue.of(folder, manifest)
    found = leaky_features(folder, manifest)
    counts = asdict(manifest.counts)
    rejected = counts.pop("rejected")
    return {
        "fingerprint": manifest.fingerprint,
        "digest": manifest.digest,
        "version": CARD_VERSION,
        "generation": manifest.generation,
        "task": manifest.task,
        "split": manifest.split,
        "time": _time(manifest),
        "counts": counts,
        "by_split": _by_split(manifest, values),
        "rejected": {
            reason: {"rows": number, "share": number / max(1, manifest.counts.rows_read)}
            for reason, number in rejected.items()
        },
        "longest_history": values["longest_history"],
        "catalogue": catalogue.numbers(manifest),
        "popularity": popularity_of(catalogue.num_events),
        "positive_rates": _rates(manifest, values),
        "features": [_feature(feature, manifest, sum(split_sizes(values).values())) for feature in manifest.features],
        "giveaways": [asdict(giveaway) for giveaway in found],
        "checks": [asdict(check) for check in (*checks_of(manifest, found), *log_checks(manifest))],
    }


def render(folder: Path, manifest: Manifest, facts: Mapping[str, Any]) -> str:
    """The page."""
    what = "impressions" if manifest.has_impressions else "events"
    ranked = np.sort(_Catalogue.of(folder, manifest).num_events)[::-1]
    return page.render(
        Path(__file__).parent,
        "card.html.j2",
        title="Shoal: data card",
        facts=facts,
        what=what,
        plots=plots_of(profile_values(manifest), facts["time"], ranked[ranked > 0], facts["positive_rates"], what),
        files=_file_rows(manifest),
        listed=manifest.source["files"][:NUM_LISTED_FILES],
        num_files=len(manifest.source["files"]),
        unreadable=[file for file in manifest.source["files"] if "unreadable" in file],
        columns=manifest.source["columns"],
        examples=_examples(folder),
        settings=json.dumps({**manifest.source["settings"], "split": manifest.split}, indent=2, ensure_ascii=False),
        item_collisions=manifest.source.get("item_collisions"),
    )


def popularity_of(num_events: Ints) -> dict[str, float]:
    """How unevenly events are spread over the items that have any: shares of the head, and the Gini coefficient (1912)."""
    ascending = np.sort(num_events[num_events > 0]).astype(np.float64)
    count, total = ascending.size, float(ascending.sum())
    if not count:
        return {"items": 0, "top_1_percent_share": 0.0, "top_10_percent_share": 0.0, "gini": 0.0}
    heads = [float(ascending[count - int(np.ceil(share * count)) :].sum()) / total for share in (0.01, 0.1)]
    gini = 2.0 * float((np.arange(1, count + 1) * ascending).sum()) / (count * total) - (count + 1) / count
    return {"items": count, "top_1_percent_share": heads[0], "top_10_percent_share": heads[1], "gini": gini}


@dataclass(frozen=True)
class _Catalogue:
    """Ids and events of every number of the catalogue, (catalogue,) each."""

    ids: Ints
    num_events: Ints
    num_train_events: Ints

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> "_Catalogue":
        names = ["id", "num_events", "num_train_events"]
        table = pq.read_table(folder / manifest.vocabulary.path, columns=names, page_checksum_verification=True)
        return cls(*(table.column(name).to_numpy().astype(np.int64) for name in names))

    def numbers(self, manifest: Manifest) -> dict[str, int]:
        """rare: with training events, but too few to be known; held_out_only: with events in validation or test only."""
        unknown = self.ids == 0
        return {
            "items": int(self.ids.size),
            "known": manifest.counts.num_items,
            "unknown": int(unknown.sum()),
            "rare": int((unknown & (self.num_train_events > 0)).sum()),
            "held_out_only": int(((self.num_events > 0) & (self.num_train_events == 0)).sum()),
            "without_events": int((self.num_events == 0).sum()),
        }


def _time(manifest: Manifest) -> dict[str, Any]:
    found = manifest.source.get("time") or {"kind": "integer", "first": None, "last": None}
    texts = [None if found[end] is None else time_as_text(found[end], found["kind"]) for end in ("first", "last")]
    return {**found, "first_text": texts[0], "last_text": texts[1], "read_as": times_as_read(manifest)}


def _by_split(manifest: Manifest, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    kind, sizes = _time(manifest)["kind"], split_sizes(values)
    found = {}
    for split in SPLITS:
        span = values["time_range"][split]
        first, last = (time_as_text(time, kind) for time in span) if span else (None, None)
        found[split] = {
            "events": sizes[split],
            "users": values["users"][split],
            "items": values["items"][split],
            "first": first,
            "last": last,
        }
    return found


def _rates(manifest: Manifest, values: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    sizes = split_sizes(values)
    return {
        label: {split: positives[split] / sizes[split] if sizes[split] else None for split in SPLITS}
        for label, positives in manifest.labels.get("positives", {}).items()
    }


def _feature(feature: Feature, manifest: Manifest, num_events: int) -> dict[str, Any]:
    """unknown_share is None for lists, of which a value may have many entries or none."""
    total = {"event": num_events, "user": manifest.counts.num_users, "item": manifest.vocabulary.num_rows}[
        feature.owner
    ]
    is_list = feature.kind == "categorical_list"
    return {
        "owner": feature.owner,
        "name": feature.name,
        "kind": feature.kind,
        "table": feature.table,
        "num_rows": feature.num_rows,
        "dim": feature.dim,
        "num_cut": feature.num_cut,
        "num_missing": feature.num_missing,
        "missing_share": min(1.0, feature.num_missing / max(1, total)),
        "num_unknown": feature.num_unknown,
        "unknown_share": None if is_list else min(1.0, feature.num_unknown / max(1, total)),
        "fitted": feature.fitted,
        "fitted_text": _fitted(feature.fitted),
        "collisions": feature.collisions,
    }


def _fitted(fitted: Mapping[str, Any] | None) -> str:
    if not fitted:
        return ""
    after = "" if fitted["transform"] == "none" else f" after {fitted['transform']}"
    if "bounds" in fitted:
        bounds = fitted["bounds"]
        ends = f" from {_short(bounds[0])} to {_short(bounds[-1])}" if bounds else ""
        return f"{len(bounds)} bounds{ends}{after}"
    return f"mean {_short(fitted['mean'])}, deviation {_short(fitted['std'])}{after}"


def _short(number: float) -> str:
    return f"{number:,.0f}" if 1e3 <= abs(number) < 1e9 else f"{number:.4g}"


def _file_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """A row for the files of each source and generation that could be read."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for file in manifest.source["files"]:
        if "unreadable" not in file:
            groups.setdefault((file["generation"], file["source"]), []).append(file)
    return [
        {
            "generation": generation,
            "source": source,
            "files": len(files),
            "rows": sum(file["rows"] for file in files),
            "num_bytes": sum(file["bytes"] for file in files),
            "names": files[0]["path"] + (f" to {files[-1]['path']}" if len(files) > 1 else ""),
        }
        for (generation, source), files in sorted(groups.items())
    ]


def _examples(folder: Path) -> list[dict[str, Any]]:
    """The first quarantined rows, those of older generations first."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("rejected-*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=NUM_EXAMPLES):
                rows += batch.to_pylist()[: NUM_EXAMPLES - len(rows)]
                break
        if len(rows) == NUM_EXAMPLES:
            break
    return rows
