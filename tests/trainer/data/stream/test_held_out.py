"""Held-out histories: every user with targets exactly once over all ranks, with the right history, mask and targets."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.features.items import Catalogue
from tests.support.datasets import tiny_dataset
from trainer.data.dataset.manifest import Manifest, Part, RowGroup
from trainer.data.dataset.splits import Split
from trainer.data.dataset.writer import OldGroups, numbered, write_part
from trainer.data.stream.held_out import HeldOut, HeldOutBatch
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader

MAX_HISTORY = 5


def held_out(
    folder: Path, manifest: Manifest, split: Split, rank: int = 0, world_size: int = 1, **changes: Any
) -> HeldOut:
    arguments: dict[str, Any] = {"targets": "all", "max_history": MAX_HISTORY, "batch_size": 6} | changes
    reader = RowGroupReader(folder, manifest, ColumnSelection(users=True))
    return HeldOut(reader, Catalogue(1000, 1000), split, rank=rank, world_size=world_size, **arguments)


def users_of(held: HeldOutBatch) -> list[dict[str, Any]]:
    """Return one plain record per user of a batch."""
    batch = held.batch
    assert batch.row_ids.tolist() == held.row_ids.tolist()
    assert batch.target_ids.numel() == batch.negative_ids.numel() == 0
    inputs = batch.lookup_ids[batch.history_index].tolist()
    offsets = batch.layout.offsets.tolist()
    return [
        {
            "row": int(held.row_ids[n]),
            "user": held.users[n].as_py(),
            "history_length": int(held.history_lengths[n]),
            "inputs": inputs[offsets[n] : offsets[n + 1]],
            "seen": held.seen[held.seen_offsets[n] : held.seen_offsets[n + 1]].tolist(),
            "targets": held.targets[held.target_offsets[n] : held.target_offsets[n + 1]].tolist(),
        }
        for n in range(held.row_ids.size)
    ]


def expected_users(folder: Path, manifest: Manifest, split: Split, first: bool = False) -> list[dict[str, Any]]:
    """Read plainly from the Parquet files, as trainer/data/dataset/manifest.py describes them."""
    rows = [row for part in manifest.parts for row in pq.read_table(folder / part.path).to_pylist()]
    users = []
    for number, row in enumerate(rows):
        cuts = {"validation": (row["train_end"], row["validation_end"]), "test": (row["validation_end"], None)}
        low, high = cuts[split]
        history, targets = row["item"][:low], row["item"][low:high]
        if targets and history:
            users.append(
                {
                    "row": number,
                    "user": row["user"],
                    "history_length": len(history),
                    "inputs": history[-MAX_HISTORY:],
                    "seen": history,
                    "targets": targets[:1] if first else targets,
                }
            )
    return users


def by_row(users: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(users, key=lambda user: user["row"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("dataset")
    return folder, tiny_dataset(folder)


@pytest.fixture(scope="module")
def many_targets(tmp_path_factory) -> tuple[Path, Manifest]:
    """Return rows as under a global time split: any number of targets, no target, no history, unknown items, one part."""
    folder = tmp_path_factory.mktemp("many")
    random = np.random.default_rng(1)
    items = [random.integers(0, 9, size=random.integers(1, 12)).astype(np.int32) for _ in range(40)]
    cuts = [np.sort(random.integers(0, len(history) + 1, size=2)) for history in items]
    histories = pa.table(
        {
            "user": pa.array(range(100, 140)),
            "item": pa.array(items, pa.list_(pa.int32())),
            "time": pa.array([np.arange(len(history)) for history in items], pa.list_(pa.int64())),
            "train_end": pa.array([int(cut[0]) for cut in cuts], pa.int32()),
            "validation_end": pa.array([int(cut[1]) for cut in cuts], pa.int32()),
        }
    )
    # The counts and the vocabulary are not read here.
    part = write_part(folder / "part-000-00000.parquet", histories, 0, 0, OldGroups((), (0,)))
    parts = numbered([part], 0)
    return folder, Manifest("many", {}, {}, counts=None, vocabularies={}, parts=parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_user_with_targets_comes_exactly_once(tiny, split, world_size):
    """With 13 ranks there are more ranks than row groups."""
    actual, num_batches = [], set()
    for rank in range(world_size):
        part = held_out(*tiny, split, rank, world_size)
        batches = list(part.batches())
        assert len(batches) == part.num_batches()
        num_batches.add(len(batches))
        actual += [user for held in batches for user in users_of(held)]
    assert len(num_batches) == 1, "ranks have different numbers of batches"
    assert by_row(actual) == expected_users(*tiny, split)
    assert len(actual) == 58


@pytest.mark.parametrize("targets", ["all", "first"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_any_cuts_give_the_right_histories_and_targets(many_targets, split, targets):
    part = held_out(*many_targets, split, targets=targets)
    actual = by_row([user for held in part.batches() for user in users_of(held)])
    expected = expected_users(*many_targets, split, first=targets == "first")
    assert actual == expected
    assert 0 < len(expected) < 40
    assert (max(len(user["targets"]) for user in expected) == 1) == (targets == "first")


def test_the_test_history_holds_the_validation_events(tiny):
    validation, test = (
        {user["row"]: user for held in held_out(*tiny, split).batches() for user in users_of(held)}
        for split in ("validation", "test")
    )
    for row, user in test.items():
        assert user["seen"] == validation[row]["seen"] + validation[row]["targets"]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 1000])
def test_the_batch_size_is_shared_by_the_ranks_and_changes_no_user(tiny, batch_size):
    actual = []
    for rank in range(2):
        for held in held_out(*tiny, "test", rank, 2, batch_size=batch_size).batches():
            assert held.row_ids.size <= max(1, batch_size // 2)
            actual += users_of(held)
    assert by_row(actual) == expected_users(*tiny, "test")


def test_ranks_without_rows_yield_empty_batches(tmp_path):
    manifest = tiny_dataset(tmp_path, num_users=6, num_parts=1, groups_per_part=1)
    part = held_out(tmp_path, manifest, "test", rank=1, world_size=2)
    batches = list(part.batches())
    assert len(batches) == part.num_batches() == 2
    for held in batches:
        assert users_of(held) == []
        assert held.batch.layout.num_events == 0
        assert held.target_offsets.tolist() == held.seen_offsets.tolist() == [0]


def test_arrays_have_the_dtypes_that_scoring_counts_on(tiny):
    held = next(iter(held_out(*tiny, "test").batches()))
    arrays = (held.row_ids, held.history_lengths, held.seen, held.seen_offsets, held.targets, held.target_offsets)
    assert {array.dtype for array in arrays} == {np.dtype(np.int64)}


def test_the_number_of_batches_is_that_of_the_rank_with_the_most_rows():
    groups = tuple(RowGroup(num_rows, num_rows, group) for group, num_rows in enumerate((10, 1, 10, 1)))
    manifest = Manifest("x", {}, {}, None, {}, (Part("none.parquet", 0, "", 0, 0, groups),))  # type: ignore[arg-type]
    for rank in range(2):
        part = HeldOut(RowGroupReader(Path(), manifest), Catalogue(9, 9), "test", "all", 5, 8, rank, 2)
        assert part.num_batches() == 6  # rank 0: two groups of ten rows, four rows at a time
