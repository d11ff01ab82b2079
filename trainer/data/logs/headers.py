"""Headers of files: the schema and row counts of Parquet files, the column names of text files."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from trainer.data.logs.config import TextConfig
from trainer.data.logs.files import InputFile, UnreadableFileError
from trainer.data.logs.formats import Header, reader_of

HEADER_THREADS = 16


def read_headers(
    files: Sequence[InputFile], text: TextConfig, setting: str
) -> tuple[list[tuple[InputFile, Header]], dict[str, str]]:
    """Return the headers of readable files, and by name the reasons why the others cannot be read.

    Args:
        files: those of one source.
        text: the format of its text files.
        setting: the name of that setting, for messages.
    """
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        results = list(pool.map(partial(_header_or_cause, text=text, setting=setting), files))
    headers = [(f, result) for f, result in zip(files, results, strict=True) if isinstance(result, Header)]
    return headers, {f.name: result for f, result in zip(files, results, strict=True) if isinstance(result, str)}


def _header_or_cause(file: InputFile, text: TextConfig, setting: str) -> Header | str:
    try:
        return reader_of(file).read_header(file, text, setting)
    except UnreadableFileError as error:
        return str(error)
