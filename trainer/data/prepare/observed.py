"""Suspicious values that the first pass counted in the logs, summed for the manifest and trainer/data/dataset/log_checks.py."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from trainer.data.dataset.splits import unit_of_clock
from trainer.data.prepare.read_pass import ReadResult
from trainer.data.prepare.rejections import EVENTS
from trainer.data.prepare.work import PrepareJob


def observed_in(job: PrepareJob, read: Mapping[int, ReadResult]) -> dict[str, Any]:
    """Return the observations of all generations of events.

    Returns:
        counts: by the names in trainer/data/logs/observations.py.
        time_units: number of chunks of the logs, by the unit that their integer times appear to have.
        spanning: text files with rows over several lines, with the number of such rows and the first line.
    """
    before = job.existing.manifest.source.get("observed", {}) if job.existing is not None else {}
    counts: Counter[str] = Counter(before.get("counts", {}))
    units: Counter[str] = Counter(before.get("time_units", {}))
    for number, result in read.items():
        if job.inputs.chunks[number].source not in EVENTS:
            continue
        counts += result.observed
        unit = unit_of_clock(*result.times) if result.times and job.inputs.time_kind == "integer" else None
        units.update([] if unit is None else [unit])
    spanning = {file["path"]: file for file in before.get("spanning", [])}
    for name, rows in sorted(job.inputs.spanning.items()):
        spanning[name] = {"path": name, "rows": rows.num_rows, "line": rows.first_line}
    return {
        "counts": dict(sorted(counts.items())),
        "time_units": dict(sorted(units.items())),
        "spanning": list(spanning.values()),
    }
