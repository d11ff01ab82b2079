"""What the first pass observed in the logs, added up for the manifest: the numbers behind trainer/data/dataset/log_checks.py."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from trainer.data.dataset.splits import unit_of_clock
from trainer.data.prepare.read_pass import ReadResult
from trainer.data.prepare.rejections import EVENTS
from trainer.data.prepare.work import PrepareJob


def observed_in(job: PrepareJob, read: Mapping[int, ReadResult]) -> dict[str, Any]:
    """Observations of all generations of events.

    counts: by the names in trainer/data/logs/observations.py; time_units: chunks of the logs by the unit that their integer times
    look like; spanning: text files in which rows take several lines, with the number of such rows and the first line.
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
    for name, found in sorted(job.inputs.spanning.items()):
        spanning[name] = {"path": name, "rows": found.num_rows, "line": found.first_line}
    return {
        "counts": dict(sorted(counts.items())),
        "time_units": dict(sorted(units.items())),
        "spanning": list(spanning.values()),
    }
