"""Micro-batches of a ranker: pieces of a batch that are computed one after another, to limit the memory of activations.

Pieces are whole histories with all of their candidates, in order: a user's impressions stay together, as losses over them
require. Looked-up vectors belong to the whole batch, and an index into them means the same in a piece. The losses of the pieces
sum to the loss of the batch.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from models.attention.candidates import lay_out_candidates
from models.batches.jagged import layout_of
from models.batches.micro_batches import cut_features, cut_field, pair_of, piece_ends, value_places
from models.ranking.batch import RankingBatch, RankingCut

# The axis along which each field of a batch is cut. All pieces share the other fields: SHARED, and the features of items.
ALONG = {
    "row_ids": "histories",
    "history_index": "events",
    "times": "events",
    "time_rows": "events",
    "candidate_index": "candidates",
    "candidate_ids": "candidates",
    "shown_at": "candidates",
    "history_end": "candidates",
    "labels": "candidates",
    "candidate_times": "candidates",
    "candidate_time_rows": "candidates",
}
SHARED = ("lookup_ids",)
OWNERS = {"events": "events", "users": "histories", "candidates": "candidates"}


def with_cuts(batch: RankingBatch, most: int | None) -> RankingBatch:
    """Return the same batch (on the CPU), to be computed in pieces.

    A piece has at most `most` events and candidates together, or one history. This runs on the host, outside of the step, like
    layouts.
    """
    offsets = batch.layout.offsets.numpy()
    shown = batch.candidate_offsets.numpy()
    if most is None or offsets[-1] + shown[-1] <= most:
        return batch
    ends = piece_ends(offsets + shown, most)
    places = {"histories": np.asarray(ends), "events": offsets[ends], "candidates": shown[ends]}
    values = {
        f"{owners}.{name}": starts
        for owners, along in OWNERS.items()
        for name, starts in value_places(getattr(batch.items, owners), places[along]).items()
    }
    seen = batch.history_end.numpy()
    reach = batch.candidate_layout.reach
    cuts = []
    for n in range(len(ends) - 1):
        bounds = {along: pair_of(starts, n) for along, starts in places.items()}
        rows = slice(ends[n], ends[n + 1] + 1)
        own = offsets[rows] - offsets[ends[n]]
        own_shown = shown[rows] - shown[ends[n]]
        cuts.append(
            RankingCut(
                **bounds,
                values={name: pair_of(starts, n) for name, starts in values.items()},
                layout=layout_of(own),
                candidate_layout=lay_out_candidates(own, own_shown, seen[slice(*bounds["candidates"])], reach),
            )
        )
    return replace(batch, cuts=tuple(cuts))


def parts_of(batch: RankingBatch) -> Iterator[RankingBatch]:
    """Yield the pieces of a batch as views of it, on any device. A batch without cuts is its own single piece."""
    if not batch.cuts:
        yield batch
        return
    for cut in batch.cuts:
        first, stop = cut.histories
        fields = {name: cut_field(getattr(batch, name), getattr(cut, along)) for name, along in ALONG.items()}
        features = {
            owners: cut_features(getattr(batch.items, owners), owners, getattr(cut, along), cut.values)
            for owners, along in OWNERS.items()
        }
        yield replace(
            batch,
            layout=cut.layout,
            candidate_layout=cut.candidate_layout,
            candidate_offsets=batch.candidate_offsets[first : stop + 1] - cut.candidates[0],
            history_of=batch.history_of[slice(*cut.candidates)] - first,
            items=replace(
                batch.items, events=features["events"], users=features["users"], candidates=features["candidates"]
            ),
            cuts=(),
            **fields,
        )
