"""Writes the files of a sequence dataset, in the format of trainer/dataset/manifest.py: parts and the vocabulary.

Equal tables become equal bytes. Pages carry checksums, because Parquet alone does not notice a flipped bit.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.dataset.grouping import Ints
from trainer.dataset.manifest import Part, RowGroup
from trainer.storage import hash_file

MIN_ROW_GROUPS = 64  # the training stream shuffles over row groups
MAX_ROWS = 4096
MAX_EVENTS = 2_000_000


def write_part(path: Path, histories: pa.Table) -> Part:
    """Write one part. Raises OSError if the disk does not take it."""
    offsets = histories.column("item").combine_chunks().offsets.to_numpy().astype(np.int64)
    bounds = row_group_bounds(offsets)
    with _writer(
        path,
        histories.schema,
        use_dictionary=["item.list.element"],
        column_encoding={"time.list.element": "DELTA_BINARY_PACKED"},  # a third smaller, and faster to read
    ) as writer:
        for first, last in pairwise(bounds):
            writer.write_table(histories.slice(first, last - first), row_group_size=last - first)
    groups = tuple(
        RowGroup(num_rows=last - first, num_events=int(offsets[last] - offsets[first]))
        for first, last in pairwise(bounds)
    )
    return Part(path.name, path.stat().st_size, hash_file(path), groups)


def row_group_bounds(offsets: Ints) -> list[int]:
    """Where to cut histories (given by their offsets) into row groups of about equal numbers of rows.

    Every part has 64 row groups, or as many as rows, so the dataset has at least 64 whatever the number of parts. None
    has more than 4,096 rows, and none more than two million events, but for a single history that is longer.
    """
    num_rows = len(offsets) - 1
    num_groups = max(min(num_rows, MIN_ROW_GROUPS), -(-num_rows // MAX_ROWS))
    bounds = (np.arange(num_groups + 1) * num_rows // max(num_groups, 1)).tolist()
    cut = [0]
    for last in bounds[1:]:
        cut.extend(_halved(offsets, cut[-1], last))
    return cut


def write_vocabulary(path: Path, values: pa.Array, num_events: Ints, num_train_events: Ints) -> dict[str, Any]:
    """Write the item vocabulary (row k is id k + 1) and return its entry in the manifest."""
    table = pa.table({"value": values, "num_events": num_events, "num_train_events": num_train_events})
    with _writer(path, table.schema) as writer:
        writer.write_table(table)
    return {"path": path.name, "sha256": hash_file(path), "num_rows": len(values)}


def _halved(offsets: Ints, first: int, last: int) -> list[int]:
    if last - first < 2 or offsets[last] - offsets[first] <= MAX_EVENTS:
        return [last]
    middle = (first + last) // 2
    return _halved(offsets, first, middle) + _halved(offsets, middle, last)


def _writer(path: Path, schema: pa.Schema, **encoding: Any) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True, **encoding)
