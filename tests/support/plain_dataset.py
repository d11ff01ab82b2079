"""A dataset read row by row, as plainly as trainer/data/dataset/manifest.py describes it: what streams are compared with."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from trainer.data.dataset.manifest import Manifest


def plain_rows(folder: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """Return all rows by their number in the dataset, with everything that later generations added to them."""
    partitions: dict[int, list[dict[str, Any]]] = {}
    for part in manifest.parts:
        rows = partitions.setdefault(part.partition, [])
        for row in pq.read_table(folder / part.path).to_pylist():
            number = row.pop("row", len(rows))
            if number == len(rows):
                rows.append(row)
                continue
            assert rows[number]["user"] == row["user"]
            for name, values in row.items():
                if name not in ("user", "train_end", "validation_end") and not name.startswith("user."):
                    rows[number][name] += values
    for cuts in manifest.cuts:
        result = pq.read_table(folder / cuts.path).to_pylist()
        assert len(result) == len(partitions[cuts.partition])
        for row, cut in zip(partitions[cuts.partition], result, strict=True):
            row.update(cut)
    home = {group.group: part.partition for part in manifest.parts for group in part.row_groups}
    left = {number: iter(rows) for number, rows in partitions.items()}
    return [next(left[home[group]]) for group, count in enumerate(manifest.group_rows) for _ in range(count)]
