"""Reads of the dataset are repeated after errors that may pass; others end the training with the file and the cause."""

import errno
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.datasets import tiny_dataset
from trainer.data.stream.row_groups import RowGroupReader
from trainer.errors import UserError
from trainer.storage.retries import Retries

AT_ONCE = Retries(2, 0.5, sleep=lambda seconds: None)


def fail(monkeypatch: pytest.MonkeyPatch, *errors: int) -> list[int]:
    """Let the next reads fail. Return the list of errors that are left."""
    left = list(errors)
    read = pq.ParquetFile.read_row_groups

    def failing(*arguments: Any, **options: Any) -> Any:
        if left:
            raise OSError(left.pop(0), "failed")
        return read(*arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", failing)
    return left


def test_a_read_is_repeated_with_a_file_that_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tiny_dataset(tmp_path)
    expected = RowGroupReader(tmp_path, manifest).read([0])[0].items.tolist()
    reader = RowGroupReader(tmp_path, manifest, retries=AT_ONCE)
    left = fail(monkeypatch, errno.EIO, errno.ESTALE)
    assert reader.read([0])[0].items.tolist() == expected
    assert left == []


@pytest.mark.parametrize(
    ("error", "cause"), [(errno.EIO, "input/output error"), (errno.EACCES, "permission is denied")]
)
def test_an_error_that_stays_is_named_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, cause: str
) -> None:
    manifest = tiny_dataset(tmp_path)
    reader = RowGroupReader(tmp_path, manifest, retries=AT_ONCE)
    fail(monkeypatch, *[error] * 20)
    with pytest.raises(UserError, match=f"{manifest.parts[0].path}, row group 0: cannot be read: .*{cause}"):
        reader.read([0])
