"""Runs an export and its trained model on the same users, for the figures of trainer.export.parity."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from trainer.export import parity, run_program
from trainer.export.inputs import Form
from trainer.export.search import Vectors
from trainer.inference import next_item
from trainer.inference.ranking import probabilities
from trainer.inference.requests import Histories
from trainer.inference.trained_model import TrainedModel


@dataclass(frozen=True)
class Exported:
    """A traced program, and the model that it was made from."""

    trained: TrainedModel
    """The model."""
    run: run_program.Run
    """The program."""
    names: tuple[str, ...]
    """Names of its inputs, in order."""
    form: Form
    """The form of its inputs."""


def of_next_item(
    exported: Exported, sample: parity.Sample, items: Vectors, exported_items: Vectors
) -> tuple[dict[str, Any], torch.Tensor]:
    """Return the differences of a next-item model, and the vectors of the users by the export.

    Args:
        exported: the program and the model.
        sample: the users.
        items: the vectors of items by the model.
        exported_items: by the export.
    """
    packed, rows = sample.packed, sample.rows
    lengths = np.zeros(packed.starts.size, np.int64)
    lengths[rows] = (packed.ends - packed.starts)[rows] - 1
    users = next_item.user_vectors(exported.trained, Histories(packed, lengths, 0))[rows]
    width = exported.trained.model.width
    vectors = run_program.user_vectors(exported.run, exported.names, exported.form, packed, lengths, width)[rows]
    return parity.compare_recommendations(sample, users, items, vectors, exported_items), vectors


def of_ranker(exported: Exported, sample: parity.Sample) -> dict[str, Any]:
    """Return the differences of a ranker."""
    shown = sample.packed.impressions
    assert shown is not None
    ends = shown.starts.copy()
    ends[sample.rows] = shown.ends[sample.rows]
    packed = replace(sample.packed, impressions=replace(shown, ends=ends))  # no impressions of other users
    places = np.flatnonzero(np.repeat(ends > shown.starts, shown.ends - shown.starts))
    labels = tuple(exported.trained.model.labels)
    by_label = probabilities(exported.trained, packed)
    expected = torch.logit(torch.from_numpy(np.stack([by_label[name] for name in labels], axis=1)[places]).double())
    logits = run_program.logits(exported.run, exported.names, exported.form, packed, len(labels))[places]
    return parity.compare_logits(sample, labels, expected, logits.double(), places)
