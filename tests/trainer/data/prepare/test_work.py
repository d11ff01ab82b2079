"""What an interrupted prepare left is read without running anything."""

import os
import pickle
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainer.data.dataset.hashing import HashSample
from trainer.data.prepare.read_pass import ChunkValues, ReadResult
from trainer.data.prepare.work import save_result, saved_result, saved_results
from trainer.errors import UserError


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_result_that_would_run_something_is_refused(tmp_path):
    (tmp_path / "read-00000.done").write_bytes(pickle.dumps(Attack(tmp_path / "trace")))
    with pytest.raises(UserError, match=r"read-00000\.done: holds \w+\.mkdir.*Nothing of it was run"):
        dict(saved_results(tmp_path, "read"))
    assert not (tmp_path / "trace").exists()


VALUES = {
    "text": pa.array(["a", "b"]),
    "large text": pa.array(["a", "b"], pa.large_string()),
    "bytes": pa.array([b"ab", b"cd"], pa.binary(2)),
    "numbers": pa.array([1, 2], pa.int64()),
    "times": pa.array([datetime(2020, 1, 1, tzinfo=UTC)] * 2, pa.timestamp("us", "UTC")),
    "decimals": pa.array([Decimal("1.5")] * 2),
    "dictionary": pa.array(["a", "b"]).dictionary_encode(),
    "lists": pa.array([[1], [2, 3]]),
    "dates": pa.array([1, 2], pa.date32()),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_of_any_type_are_read_back(tmp_path, kind):
    counts = pa.table({"value": VALUES[kind], "count": [3, 4]})
    save_result(tmp_path, "values", 0, ChunkValues({"item": counts}))
    assert saved_result(tmp_path, "values", 0).counts["item"].equals(counts)


def test_a_result_that_a_power_failure_cut_short_is_not_finished(tmp_path):
    for number in range(2):
        save_result(tmp_path, "read", number, ReadResult(5, Counter(duplicate=1), np.asarray([2, 3])))
    path = tmp_path / "read-00001.done"
    path.write_bytes(path.read_bytes()[:-9])
    assert [number for number, _ in saved_results(tmp_path, "read")] == [0]


def test_results_of_earlier_versions_name_samples_differently(tmp_path):
    HashSample.__qualname__ = "Sample"  # the name by which pickle stores a class
    try:
        save_result(tmp_path, "group", 0, HashSample(np.asarray([7], np.uint64), np.asarray([0.5])))
    finally:
        HashSample.__qualname__ = "HashSample"
    assert b"HashSample" not in next(tmp_path.iterdir()).read_bytes()
    sample = saved_result(tmp_path, "group", 0)
    assert isinstance(sample, HashSample)
    assert sample.keys.tolist() == [7]
    assert sample.values.tolist() == [0.5]
