"""Files of a folder of explanations that the driver writes: tables of attention, faithfulness, and the page."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest
from trainer.evaluation.run_header import model_text
from trainer.explanation.aggregates.sums import merged
from trainer.explanation.aggregates.tables import group_table, map_table
from trainer.explanation.command.folder import (
    ATTENTION_GROUPS,
    ATTENTION_HEADS,
    FAITHFULNESS,
    PAGE,
    ExplanationsManifest,
    read_explanations,
)
from trainer.explanation.command.request import PartResult
from trainer.explanation.faithfulness.results import Faithfulness, from_json, to_json
from trainer.explanation.page.render import render
from trainer.explanation.page.trust import not_measured, trust_of
from trainer.storage.files import write_json_atomically, write_text_atomically
from trainer.storage.parquet import write_parquet


def write_outputs(
    job: Job, manifest: Manifest, folder: Path, described: ExplanationsManifest, parts: Sequence[PartResult]
) -> None:
    """Write the tables of attention, the faithfulness and the page into a folder with the tables of the workers.

    Args:
        job: the run.
        manifest: the manifest of its dataset.
        folder: the folder.
        described: what it holds.
        parts: the results of the workers.
    """
    groupings = parts[0].groupings
    sums = merged([part.attention for part in parts if part.attention is not None])
    if sums is not None:
        write_parquet(group_table(sums, groupings), folder / ATTENTION_GROUPS)
        write_parquet(map_table(sums), folder / ATTENTION_HEADS)
    measured = _faithfulness(job, described, parts)
    trust = not_measured()
    if measured is not None:
        write_json_atomically(folder / FAITHFULNESS, to_json(measured))
        trust = trust_of(measured, described.methods[0])
    write_text_atomically(folder / PAGE, render(job, manifest, folder, described, trust, sums, groupings))


def read_faithfulness(folder: Path, checkpoint: str, dataset: str) -> Faithfulness | None:
    """Return the last measurement in a folder of explanations of the same checkpoint and dataset, else None."""
    described = read_explanations(folder)
    if described is None or (described.checkpoint, described.dataset) != (checkpoint, dataset):
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        return from_json(Faithfulness, json.loads((folder / FAITHFULNESS).read_text(encoding="utf-8")))
    return None


def _faithfulness(job: Job, described: ExplanationsManifest, parts: Sequence[PartResult]) -> Faithfulness | None:
    """Return the faithfulness over the users of all workers; None if no user was measured."""
    # They load torch, which a command that only finds its results there need not wait for.
    from trainer.explanation.command.measure import together
    from trainer.explanation.faithfulness.measure import UserMeasurements
    from trainer.explanation.faithfulness.summary import TOP_ITEM, summarise

    measured = together([part.measured for part in parts if part.measured is not None])
    if measured is None or not measured.lengths.size:
        return None
    target = TOP_ITEM
    if described.task == "ranking":
        target = "The explained item is that of the latest impression of each user."
    elif described.options["item"] is not None:
        target = "The explained item is the given one."
    options = described.options
    values = UserMeasurements(measured.values, options["removal"], measured.lengths)
    return summarise(values, model_text(job), measured.num_short, options["seed"], target)
