"""Scores of a ranker in one process."""

from dataclasses import replace

import numpy as np
import torch

from models.ranking.reach import reach_of
from trainer.data.stream.impressions import gather_impressions, ranking_batch
from trainer.data.stream.packed import PackedHistories
from trainer.inference.trained_model import TrainedModel

BATCH_ENTRIES = 16_384  # events and impressions that are scored at a time


def probabilities(trained: TrainedModel, packed: PackedHistories) -> dict[str, np.ndarray]:
    """Return the probability of each label for each packed impression, (M,) float32 by label.

    packed: histories with impressions, as HistoryEncoder.with_impressions returns them.
    """
    shown = packed.impressions
    assert shown is not None
    reach = reach_of(trained.model.config)
    counts = shown.ends - shown.starts
    logits = np.zeros((shown.items.size, len(trained.model.labels)), np.float32)
    lengths = np.minimum(packed.ends - packed.starts - 1, reach.receptive) + counts
    rows = np.flatnonzero(counts > 0)
    number = np.cumsum(lengths[rows]) // BATCH_ENTRIES
    with torch.no_grad():
        for part in np.split(rows, np.flatnonzero(np.diff(number)) + 1) if rows.size else []:
            gathered = gather_impressions(packed, part, np.zeros_like(part), counts[part], part, reach)
            batch = ranking_batch(gathered, trained.catalogue, reach)
            batch = replace(batch, items=trained.dynamic.rows_of(batch.items))
            places = gathered.candidates.place + np.repeat(shown.starts[part], counts[part])
            logits[places] = trained.model.logits(trained.look_up(batch.items), batch).numpy()
    values = torch.sigmoid(torch.from_numpy(logits)).numpy()
    return {label: values[:, place] for place, label in enumerate(trained.model.labels)}
