"""Counts of rejected rows, and the limit above which prepare stops.

Events (logs and history) and the catalogue (items and users) are counted separately: an event is read once, in one
generation, but the catalogue is read again by every append.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from trainer.data.dataset.grouping import DUPLICATE, TOO_MANY
from trainer.data.dataset.partition_features import REPEATED_USER
from trainer.data.logs.columns import SourceName
from trainer.data.logs.quarantine import examples
from trainer.data.prepare.group_pass import GroupResult
from trainer.data.prepare.read_pass import ReadResult
from trainer.data.prepare.work import PrepareJob
from trainer.errors import UserError

EVENTS: tuple[SourceName, ...] = ("logs", "history")
CATALOGUE: tuple[SourceName, ...] = ("items", "users")
REPEATED_ITEM = "duplicate item"
NO_FAULT = (DUPLICATE, TOO_MANY, REPEATED_ITEM, REPEATED_USER)  # repeated, or above a limit, but not bad


def count_rejected(
    job: PrepareJob, sources: Iterable[SourceName], read: Mapping[int, ReadResult], grouped: Sequence[GroupResult]
) -> Counter[str]:
    """Count the rows of some sources that this attempt rejected, by reason."""
    total: Counter[str] = Counter()
    selected = set(sources)
    for chunk, result in read.items():
        if job.inputs.chunks[chunk].source in selected:
            total += result.rejected
    for group in grouped:
        for (source, reason), count in group.rejected.items():
            if source in selected:
                total[reason] += count
    return total


def check_budget(job: PrepareJob, read: Mapping[int, ReadResult], grouped: Sequence[GroupResult] = ()) -> None:
    """Check every source. Raises UserError for one without rows, or with more bad rows than logs.max_rejected_fraction."""
    for source in dict.fromkeys(chunk.source for chunk in job.inputs.chunks):
        chunks = [number for number in read if job.inputs.chunks[number].source == source]
        num_rows = sum(read[number].num_rows for number in chunks)
        if not num_rows:
            raise UserError(f"{source} {_where(job, source)}: no rows; check {_setting(source)}.path")
        rejected = count_rejected(job, [source], read, grouped)
        bad = sum(count for reason, count in rejected.items() if reason not in NO_FAULT)
        if bad / num_rows > job.request.logs.max_rejected_fraction or bad == num_rows:
            first = examples(_quarantines(job, chunks, grouped), leave_out=NO_FAULT)
            raise UserError(_too_many(job, source, bad, num_rows, rejected, first))


def _quarantines(job: PrepareJob, chunks: list[int], grouped: Sequence[GroupResult]) -> list[Path]:
    read = [job.rejected_in("read", chunk) for chunk in chunks]
    return read + [job.rejected_in("group", partition) for partition in range(len(grouped))]


def _too_many(
    job: PrepareJob, source: SourceName, bad: int, num_rows: int, rejected: Counter[str], first: list[str]
) -> str:
    allowed = job.request.logs.max_rejected_fraction
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(rejected.items()))
    columns = job.inputs.contracts[source].columns
    named = ", ".join(f'{c.setting} = "{c.source}"' for c in columns if c.role in ("id", "time"))
    keep = ' If negative ids are intended, set logs.negative_ids = "keep".' if "negative" in reasons else ""
    return (
        f"{source} {_where(job, source)}: {bad:,} of {num_rows:,} rows ({bad / num_rows:.2%}) cannot be used: {reasons}; "
        f"logs.max_rejected_fraction allows {allowed:.2%}. The first: {', '.join(first)}. "
        f"Check {named}, correct the files, or raise logs.max_rejected_fraction.{keep}"
    )


def _where(job: PrepareJob, source: SourceName) -> str:
    files = list(dict.fromkeys(chunk.file.name for chunk in job.inputs.chunks if chunk.source == source))
    return files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def _setting(source: SourceName) -> str:
    return "logs" if source == "logs" else f"logs.{source}"
