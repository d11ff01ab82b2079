"""The data card: card.html for people and card.json for programs, to be read before anything is trained on a dataset.

Both are made from the finished dataset and its manifest alone, and belong to exactly that content (`digest`). They are not part of
the dataset: a dataset without its card is complete.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sharding.config import VocabularyIdsConfig
from trainer.data.dataset.card_plots import is_clock, plots_of, time_text
from trainer.data.dataset.checks import Check, checks_of, profile_values, split_sizes
from trainer.data.dataset.leakage import leaky_features
from trainer.data.dataset.log_checks import log_checks, times_as_read
from trainer.data.dataset.manifest import Feature, Manifest
from trainer.data.dataset.profile import SPLITS
from trainer.data.dataset.splits import unit_of_clock
from trainer.data.logs.config import LogsConfig
from trainer.pages import page
from trainer.pages.text import moment_text, setting_text
from trainer.settings import flatten
from trainer.storage.files import write_json_atomically, write_text_atomically
from trainer.storage.parquet import open_parquet, read_parquet

PAGE, VALUES = "card.html", "card.json"
CARD_VERSION = 4  # raise it when the card of the same dataset would change
NUM_EXAMPLES = 10  # of quarantined rows
NUM_LISTED_FILES = 200

Ints = npt.NDArray[np.int64]


def write(folder: Path, manifest: Manifest) -> None:
    """Write card.html and card.json into the dataset folder. Raises OSError if the disk refuses."""
    facts = facts_of(folder, manifest)
    write_text_atomically(folder / PAGE, render(folder, manifest, facts))
    write_json_atomically(folder / VALUES, facts)


def read_checks(folder: Path, manifest: Manifest) -> tuple[Check, ...] | None:
    """Return the checks on the card of a dataset.

    None if it has no card, or one of another version or of the dataset before an append.
    """
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
    """Return everything on the card as plain values."""
    values = profile_values(manifest)
    catalogue = _Catalogue.of(folder, manifest)
    leaky = leaky_features(folder, manifest)
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
        "giveaways": [asdict(feature) for feature in leaky],
        "checks": [asdict(check) for check in (*checks_of(manifest, leaky), *log_checks(manifest))],
    }


def render(folder: Path, manifest: Manifest, facts: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        folder: the dataset.
        manifest: its manifest.
        facts: what facts_of returned for it.
    """
    what = "impressions" if manifest.has_impressions else "events"
    ranked = np.sort(_Catalogue.of(folder, manifest).num_events)[::-1]
    return page.render(
        Path(__file__).parent,
        "card.html.j2",
        title=f"Data card of {name_of(folder)}",
        header=_header_rows(folder, manifest, facts, what),
        tiles=_tiles(facts, what),
        is_clock=is_clock(facts["time"]),
        facts=facts,
        what=what,
        plots=plots_of(profile_values(manifest), facts["time"], ranked[ranked > 0], facts["positive_rates"], what),
        files=_file_rows(manifest),
        listed=manifest.source["files"][:NUM_LISTED_FILES],
        num_files=len(manifest.source["files"]),
        unreadable=[file for file in manifest.source["files"] if "unreadable" in file],
        columns=manifest.source["columns"],
        examples=_examples(folder),
        settings=[*_setting_rows(manifest)],
        item_collisions=manifest.source.get("item_collisions"),
    )


def name_of(folder: Path) -> str:
    """Return what people call a dataset: its folder, or the run that it is in."""
    resolved = folder.resolve()
    return resolved.parent.name if resolved.name == "dataset" else resolved.name


def _header_rows(folder: Path, manifest: Manifest, facts: Mapping[str, Any], what: str) -> list[tuple[str, str]]:
    time, split = facts["time"], dict(facts["split"])
    zone = " UTC" if is_clock(time) else ""
    num_files = len(manifest.source["files"])
    number = sum(row["events"] for row in facts["by_split"].values())
    span = f", {time['first_text']} to {time['last_text']}{zone}" if time["first_text"] else ""
    for name in ("validation_time", "test_time"):
        if isinstance(split.get(name), int) and is_clock(time):
            split[name] = f"{time_text(split[name], time)} UTC"
    rows = [
        ("Task", manifest.task),
        ("Logs", f"{num_files:,} file{'s' * (num_files != 1)}, {number:,} {what}{span}"),
        ("Split", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in split.items())),
    ]
    if facts["time"]["read_as"]:
        rows.append(("Times", facts["time"]["read_as"]))
    if (folder / "manifest.json").exists():
        rows.append(("Prepared", moment_text((folder / "manifest.json").stat().st_mtime)))
    return [
        *rows,
        ("Digest", facts["digest"]),
        ("Fingerprint", f"{facts['fingerprint']}, generation {facts['generation']}"),
    ]


def _tiles(facts: Mapping[str, Any], what: str) -> list[dict[str, str]]:
    counts, checks = facts["counts"], facts["checks"]
    number = sum(row["events"] for row in facts["by_split"].values())
    rejected = sum(row["rows"] for row in facts["rejected"].values())
    share = 100 * rejected / max(1, counts["rows_read"])
    problems = [f"{sum(c['verdict'] == verdict for c in checks)} {verdict}" for verdict in ("look", "problem")]
    rows = (
        ("users", f"{counts['num_users']:,}", ""),
        ("items", f"{facts['catalogue']['items']:,}", f"{facts['catalogue']['known']:,} known to the model"),
        (what, f"{number:,}", f"{rejected:,} rows rejected ({share:.2f} %)"),
        ("checks", f"{sum(c['verdict'] == 'ok' for c in checks)} ok", ", ".join(problems)),
    )
    return [{"name": name, "value": value, "interval": "", "note": note} for name, value, note in rows]


def _setting_rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the settings that decide the content: of the logs those that differ from their defaults, and all of the split."""
    recorded = manifest.source["settings"]
    logs = dict(recorded.get("logs", {}))
    # The manifest records no paths, which the config requires: any text takes their place, and is left out again.
    for section in ("items", "users", "history"):
        if logs.get(section) is not None:
            logs[section] = {"path": "", **logs[section]}
    with suppress(ValueError):  # recorded by a version with other settings: all of them are shown
        logs = LogsConfig.model_validate({"path": "", **logs}).model_dump(mode="json", exclude_defaults=True)
    default_ids = VocabularyIdsConfig().model_dump(mode="json")
    tables = {name: table for name, table in recorded.get("tables", {}).items() if table.get("ids") != default_ids}
    for name, value in flatten({"logs": logs, "tables": tables, "split": manifest.split}).items():
        if not name.endswith(".path") and value is not None:
            yield name, setting_text(value)


def popularity_of(num_events: Ints) -> dict[str, float]:
    """Return how unevenly events are spread over items with events: shares of the most popular, and the Gini coefficient (1912)."""
    ascending = np.sort(num_events[num_events > 0]).astype(np.float64)
    count, total = ascending.size, float(ascending.sum())
    if not count:
        return {"items": 0, "top_1_percent_share": 0.0, "top_10_percent_share": 0.0, "gini": 0.0}
    heads = [float(ascending[count - int(np.ceil(share * count)) :].sum()) / total for share in (0.01, 0.1)]
    gini = 2.0 * float((np.arange(1, count + 1) * ascending).sum()) / (count * total) - (count + 1) / count
    return {"items": count, "top_1_percent_share": heads[0], "top_10_percent_share": heads[1], "gini": gini}


@dataclass(frozen=True)
class _Catalogue:
    """All items of the catalogue, (catalogue,) each."""

    ids: Ints
    """The model's id, 0 for items that the training part does not know."""
    num_events: Ints
    """Events of all splits."""
    num_train_events: Ints
    """Training events."""

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> "_Catalogue":
        """Read the catalogue of a dataset."""
        names = ["id", "num_events", "num_train_events"]
        table = read_parquet(folder / manifest.vocabulary.path, columns=names, page_checksum_verification=True)
        return cls(*(table.column(name).to_numpy().astype(np.int64) for name in names))

    def numbers(self, manifest: Manifest) -> dict[str, int]:
        """Count items by what is known of them.

        Of the keys, "rare" are items with training events, but too few to be known, and "held_out_only" those with events in
        validation or test only.
        """
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
    """Return the span of the times: first and last, as numbers and as people read them.

    "unit" is set where integers are times of a clock.
    """
    recorded = manifest.source.get("time") or {"kind": "integer", "first": None, "last": None}
    first, last = recorded["first"], recorded["last"]
    is_integer = recorded["kind"] == "integer" and first is not None and last is not None
    span = {**recorded, "unit": unit_of_clock(int(first), int(last)) if is_integer else None}
    texts = [None if time is None else time_text(time, span) for time in (first, last)]
    return {**span, "first_text": texts[0], "last_text": texts[1], "read_as": times_as_read(manifest)}


def _by_split(manifest: Manifest, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the events, users, items and times of each split."""
    span, sizes = _time(manifest), split_sizes(values)
    by_split = {}
    for split in SPLITS:
        times = values["time_range"][split]
        first, last = (time_text(time, span) for time in times) if times else (None, None)
        by_split[split] = {
            "events": sizes[split],
            "users": values["users"][split],
            "items": values["items"][split],
            "first": first,
            "last": last,
        }
    return by_split


def _rates(manifest: Manifest, values: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return the rate of positives of each label by split, None for an empty split."""
    sizes = split_sizes(values)
    return {
        label: {split: positives[split] / sizes[split] if sizes[split] else None for split in SPLITS}
        for label, positives in manifest.labels.get("positives", {}).items()
    }


def _feature(feature: Feature, manifest: Manifest, num_events: int) -> dict[str, Any]:
    """Return what is known of a feature.

    "unknown_share" is None for lists, because a value may have many entries or none.
    """
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
    """Return what was fitted to a feature, in words."""
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
    """Return a row per source and generation of the files that could be read."""
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
    """Return the first quarantined rows, older generations first."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("rejected-*.parquet")):
        with open_parquet(path) as file:
            for batch in file.iter_batches(batch_size=NUM_EXAMPLES):
                rows += batch.to_pylist()[: NUM_EXAMPLES - len(rows)]
                break
        if len(rows) == NUM_EXAMPLES:
            break
    return rows
