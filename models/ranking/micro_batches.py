"""A ranking batch in pieces that are computed one after another, so that only the activations of one exist at a time.

Pieces are whole histories with all of their candidates, in order: a user's impressions stay together, as losses over them need.
What was looked up is that of the whole batch, and an index into it means the same in a piece. The sum of the losses of the pieces
is the loss of the batch.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from models.attention.candidates import lay_out_candidates
from models.batches.jagged import layout_of
from models.batches.micro_batches import cut_features, cut_field, pair_of, piece_ends, value_places
from models.ranking.batch import RankingBatch, RankingCut

# How each field of a batch is cut. The others are shared by all pieces: SHARED, and of `items` what is said of items.
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
    """The same batch (on the CPU), to be computed in pieces of at most `most` events and candidates together, or of one history.

    Runs on the host, away from the step, as layouts do.
    """
    offsets, shown = batch.layout.offsets.numpy(), batch.candidate_offsets.numpy()
    if most is None or offsets[-1] + shown[-1] <= most:
        return batch
    ends = piece_ends(offsets + shown, most)
    places = {"histories": np.asarray(ends), "events": offsets[ends], "candidates": shown[ends]}
    values = {
        f"{owners}.{name}": found
        for owners, along in OWNERS.items()
        for name, found in value_places(getattr(batch.items, owners), places[along]).items()
    }
    seen, reach = batch.history_end.numpy(), batch.candidate_layout.reach
    cuts = []
    for n in range(len(ends) - 1):
        bounds = {along: pair_of(found, n) for along, found in places.items()}
        rows = slice(ends[n], ends[n + 1] + 1)
        own, own_shown = offsets[rows] - offsets[ends[n]], shown[rows] - shown[ends[n]]
        cuts.append(
            RankingCut(
                **bounds,
                values={name: pair_of(found, n) for name, found in values.items()},
                layout=layout_of(own),
                candidate_layout=lay_out_candidates(own, own_shown, seen[slice(*bounds["candidates"])], reach),
            )
        )
    return replace(batch, cuts=tuple(cuts))


def parts_of(batch: RankingBatch) -> Iterator[RankingBatch]:
    """The pieces of a batch, as views of it on whatever device it is; the batch itself if it is in one piece."""
    if not batch.cuts:
        yield batch
        return
    for cut in batch.cuts:
        first, stop = cut.histories
        fields = {name: cut_field(getattr(batch, name), getattr(cut, along)) for name, along in ALONG.items()}
        said = {
            owners: cut_features(getattr(batch.items, owners), owners, getattr(cut, along), cut.values)
            for owners, along in OWNERS.items()
        }
        yield replace(
            batch,
            layout=cut.layout,
            candidate_layout=cut.candidate_layout,
            candidate_offsets=batch.candidate_offsets[first : stop + 1] - cut.candidates[0],
            history_of=batch.history_of[slice(*cut.candidates)] - first,
            items=replace(batch.items, events=said["events"], users=said["users"], candidates=said["candidates"]),
            cuts=(),
            **fields,
        )
