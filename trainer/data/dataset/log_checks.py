"""Checks of the logs behind a dataset: ids, times and rows that can be read in two ways.

Like the other checks (trainer/data/dataset/checks.py), they are pure functions of the manifest and stop nothing.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from trainer.data.dataset.checks import Check, Limits, Verdict
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import time_as_text
from trainer.data.logs.observations import IDS, MISSING_WORD, SPACES, WITH_ZONE, WITHOUT_ZONE

ANY = 1e-12
MISSING_WORDS = Limits(ANY, 0.01)
SPACES_AROUND = Limits(ANY, np.inf)
_YEAR_1990 = 631_152_000_000_000  # microseconds since 1970


def log_checks(manifest: Manifest) -> tuple[Check, ...]:
    """Return all checks of the logs that apply to the dataset. Datasets of earlier versions have none of the counts."""
    observed = manifest.source.get("observed", {})
    counts = observed.get("counts", {})
    checks = [_ids(manifest, counts), _spaces(manifest, counts)]
    checks += [*_plausible_times(manifest), *_time_units(observed), *_time_text(counts), *_spanning(manifest, observed)]
    return tuple(checks)


def times_as_read(manifest: Manifest) -> str | None:
    """Describe how times that are text were read; None if they are not text."""
    counts = manifest.source.get("observed", {}).get("counts", {})
    with_zone = counts.get(WITH_ZONE, 0)
    without = counts.get(WITHOUT_ZONE, 0)
    if not with_zone + without:
        return None
    logs = manifest.source["settings"].get("logs", {})
    formats = [logs.get("time_format"), (logs.get("history") or {}).get("time_format")]
    read_as = " and ".join(sorted({f"the format {format}" for format in formats if format})) or "ISO 8601 text"
    zones = [f"{with_zone:,} with a zone, converted to UTC"] if with_zone else []
    zones += [f"{without:,} without a zone, taken as UTC"] if without else []
    return f"Times were read as {read_as}: {' and '.join(zones)}"


def _ids(manifest: Manifest, counts: dict[str, int]) -> Check:
    return _of_ids(
        manifest,
        counts,
        MISSING_WORD,
        ("missing_ids_as_text", "Ids that are the text of a missing value"),
        MISSING_WORDS,
        'Such a text ("nan", "None", "null") becomes a user or an item that has all events with a missing id. List it in '
        "logs.null_values to reject these rows.",
    )


def _spaces(manifest: Manifest, counts: dict[str, int]) -> Check:
    return _of_ids(
        manifest,
        counts,
        SPACES,
        ("ids_with_spaces", "Ids with spaces around them"),
        SPACES_AROUND,
        'Spaces are part of an id, so " 7" and "7" are two ids. Remove the spaces from the files if they mean nothing.',
    )


def _of_ids(
    manifest: Manifest, counts: dict[str, int], what: str, names: tuple[str, str], limits: Limits, why: str
) -> Check:
    of_ids = {name: counts.get(f"{name}: {what}", 0) for name in IDS}
    total = max(1, manifest.counts.rows_read)
    share = max(of_ids.values()) / total
    shares = ", ".join(
        f"{count:,} of {total:,} rows by their {name} ({count / total:.2%})" for name, count in of_ids.items()
    )
    return Check(*names, limits.verdict(share), share, shares if share else "none", why)


def _plausible_times(manifest: Manifest) -> Iterator[Check]:
    """Check that times that are dates are not before 1990, and not after the newest file was written."""
    time = manifest.source.get("time") or {}
    if time.get("kind") != "timestamp" or time.get("first") is None:
        return
    written = max((file.get("mtime_ns") or 0 for file in manifest.source["files"]), default=0) // 1000
    wrong = []
    if time["first"] < _YEAR_1990:
        wrong.append(f"the first is {time_as_text(time['first'], 'timestamp')}, before 1990")
    if written and time["last"] > written:
        wrong.append(f"the last is {time_as_text(time['last'], 'timestamp')}, after the newest file was written")
    yield Check(
        "implausible_times",
        "Times in the distant past or the future",
        "look" if wrong else "ok",
        len(wrong),
        "; ".join(wrong) or "none",
        "They come from wrong clocks or units; logs.earliest_time and logs.latest_time reject them.",
    )


def _time_units(observed: dict[str, Any]) -> Iterator[Check]:
    units = observed.get("time_units", {})
    if units:
        parts = ", ".join(f"{unit} in {count:,}" for unit, count in units.items())
        yield Check(
            "mixed_time_units",
            "Times in one unit",
            "problem" if len(units) > 1 else "ok",
            len(units),
            f"times look like {parts} parts of the logs",
            "Integer times are not converted, so events in another unit come first or last in every history. Write all files "
            "in one unit.",
        )


def _time_text(counts: dict[str, int]) -> Iterator[Check]:
    with_zone = counts.get(WITH_ZONE, 0)
    without = counts.get(WITHOUT_ZONE, 0)
    if with_zone + without:
        yield Check(
            "time_zones",
            "Zones of times that are text",
            "look" if with_zone and without else "ok",
            with_zone / (with_zone + without),
            f"{with_zone:,} times name a zone and were converted to UTC, {without:,} name none and were taken as UTC",
            "If the times without a zone are local times, they are hours apart from the others. Write a zone with every time.",
        )


def _spanning(manifest: Manifest, observed: dict[str, Any]) -> Iterator[Check]:
    files = observed.get("spanning", [])
    if not files:
        return
    declared = manifest.source["settings"].get("logs", {})
    sections = [declared, *(declared.get(name) or {} for name in ("history", "items", "users"))]
    known = any((section.get("text") or {}).get("quoting", "auto") != "auto" for section in sections)
    verdict: Verdict = "ok" if known else "look"
    rows = sum(file["rows"] for file in files)
    yield Check(
        "rows_over_several_lines",
        "Quoted line breaks in text files",
        verdict,
        rows,
        f"{rows:,} rows of {len(files):,} files take several lines; the first begins in line {files[0]['line']:,} of "
        f"{files[0]['path']}",
        'If quotes are ordinary characters in these files, rows were swallowed: set logs.text.quoting = "none". '
        'logs.text.quoting = "double" declares the line breaks as intended.',
    )
