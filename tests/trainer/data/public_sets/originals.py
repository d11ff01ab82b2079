"""Small files in the formats in which the publishers offer the sets, and the tables that a conversion wrote."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def write_files(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Return the file. Text is written as UTF-8; names that end in .gz are compressed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def json_lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def rows(folder: Path, name: str) -> list[tuple[Any, ...]]:
    """Return the rows of one written file, each as a tuple in the order of the columns."""
    table = pq.read_table(folder / name)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def columns(folder: Path, name: str) -> dict[str, str]:
    """Name and type of the columns of one written file."""
    return {field.name: str(field.type) for field in pq.read_schema(folder / name)}


MOVIELENS_CSV: dict[str, str | bytes] = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,4.0,1112484676\n2,2,5.0,1112486027\n",
    "movies.csv": "movieId,title,genres\n"
    '2,"American President, The (1995)",Comedy|Drama|Romance\n'
    '29,"City of Lost Children, The (Cité des enfants perdus, La) (1995)",Sci-Fi\n'
    "171749,Death Note: Desu nôto (2006\u20132007),(no genres listed)\n",
}
