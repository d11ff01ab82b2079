"""Names and file endings of the log formats. Imports no pyarrow, so that settings can use it."""

from typing import Literal

FormatName = Literal["parquet", "csv", "tsv"]
FormatSetting = Literal["auto", "parquet", "csv", "tsv"]
FORMAT_OF_ENDING: dict[str, FormatName] = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".inter": "tsv"}
