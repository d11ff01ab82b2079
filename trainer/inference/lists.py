"""Recommendation lists as tables: one row per user and item."""

import numpy as np
import pyarrow as pa

COLUMNS = ("user_id", "item_id", "score", "rank")
SIMILAR_COLUMNS = ("item_id", "similar_item_id", "score", "rank")


def list_table(
    columns: tuple[str, ...], owners: pa.Array, ids: np.ndarray, scores: np.ndarray, item_values: pa.Array
) -> pa.Table:
    """Return lists as one row per entry, without empty places. A score that is not a number becomes null.

    Args:
        columns: names of the owner, the item, the score (float32) and the rank (int32, from 1).
        owners: (B,) users or items as in the logs.
        ids: (B, K) ids of items, the best first; 0 for an empty place.
        scores: (B, K).
        item_values: items as in the logs: entry k is id k + 1.
    """
    there = ids > 0
    rows, places = np.nonzero(there)
    kept = scores[there].astype(np.float32)
    values = [
        owners.take(pa.array(rows)),
        item_values.take(pa.array(ids[there] - 1)),
        pa.array(kept, pa.float32(), mask=np.isnan(kept)),
        pa.array((places + 1).astype(np.int32)),
    ]
    return pa.table(dict(zip(columns, values, strict=True)))
