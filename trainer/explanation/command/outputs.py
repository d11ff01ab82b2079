"""Files of a folder of explanations that the driver writes: tables of attention, and the page. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest
from trainer.explanation.aggregates.groups import Grouping
from trainer.explanation.aggregates.sums import AttentionSums, merged
from trainer.explanation.aggregates.tables import group_table, map_table
from trainer.explanation.command.folder import ATTENTION_GROUPS, ATTENTION_HEADS, PAGE, ExplanationsManifest
from trainer.explanation.page.render import render
from trainer.explanation.page.trust import Trust
from trainer.storage.files import write_text_atomically


def write_outputs(
    job: Job,
    manifest: Manifest,
    folder: Path,
    described: ExplanationsManifest,
    trust: Trust,
    attention: Sequence[AttentionSums],
    groupings: Sequence[Grouping],
) -> None:
    """Write the tables of attention and the page into a folder with the tables of the workers.

    Args:
        job: the run.
        manifest: the manifest of its dataset.
        folder: the folder.
        described: what it holds.
        trust: how faithful the shown method is.
        attention: the sums of each worker; empty for a model without attention.
        groupings: the groupings of these sums.
    """
    sums = merged(attention)
    if sums is not None:
        pq.write_table(group_table(sums, groupings), folder / ATTENTION_GROUPS)
        pq.write_table(map_table(sums), folder / ATTENTION_HEADS)
    write_text_atomically(folder / PAGE, render(job, manifest, folder, described, trust, sums, groupings))
