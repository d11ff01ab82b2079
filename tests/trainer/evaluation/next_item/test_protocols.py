"""Protocols against brute force on tiny data: queries, candidates and repeats, on one and two ranks and any batch size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.plain_dataset import plain_rows
from tests.support.rank_pool import RankPool
from tests.trainer.evaluation.next_item.test_results import LastItemNext
from trainer.config.evaluate import EvaluateConfig
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.dataset.splits import Cuts, LeaveOneOut, Split, TimeBounds, UserHoldout
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.errors import UserError
from trainer.evaluation.next_item.baselines.build import build_baselines
from trainer.evaluation.next_item.evaluate import make_evaluator, write_user_rows
from trainer.evaluation.next_item.listed import candidates_text, listed_items
from trainer.evaluation.next_item.merged_rows import merge_parts
from trainer.evaluation.next_item.metrics import user_metrics
from trainer.evaluation.next_item.results import Evaluated, num_repeats, summarize
from trainer.global_batch.dynamic_ids import DynamicTables

KS = [1, 3]
BY_TIME = TimeBounds(60, 75)
ALONE = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Query:
    """One query by hand: its history, targets, and the moment of the first target."""

    history: list[int]
    targets: list[int]
    moment: int


def queries_of(row: dict[str, Any], split: Split, config: EvaluateConfig, low: int, high: int) -> list[Query]:
    """Return the queries of a row, event by event, as docs/evaluation.md describes them."""
    queries: list[Query] = []
    together: list[tuple[int, int]] = []
    for place in range(low, high):
        item, time = row["item"][place], row["time"][place]
        past = row["item"][: place if config.targets == "each" else low]
        if config.repeats == "drop" and item in past:
            continue
        together.append((item, time))
        if config.targets != "all" and (config.targets == "each" or len(together) == 1):
            queries.append(Query(row["item"][:place], [item], time))
    if config.targets == "all" and together:
        queries = [Query(row["item"][:low], [item for item, _ in together], together[0][1])]
    return [query for query in queries if query.history]


def ranks_of(query: Query, config: EvaluateConfig, num_items: int, allowed: Any) -> list[int]:
    """Return the place of each target: the item after the last one is first, all others by id."""
    best = query.history[-1] % (num_items + 1) + 1
    order = sorted(range(1, num_items + 1), key=lambda item: (item != best, item))
    seen = set(query.history) if config.mask_seen else set()
    ranked = [item for item in order if item not in seen and allowed(item, query.moment)]
    return [ranked.index(item) + 1 if item in ranked else 0 for item in query.targets]


def evaluated(world: World, folder: Path, split: Split, config: EvaluateConfig, parts: Path) -> dict[str, float]:
    """Evaluate a model without weights; write the parts, and return the means over users."""
    manifest = read_manifest(folder)
    catalogue = Catalogue(manifest.num_item_rows, manifest.num_item_rows)
    dynamic = DynamicTables({}, (), seed=0)
    evaluator = make_evaluator(folder, manifest, catalogue, split, config, 5, world, dynamic)
    model: Any = LastItemNext(manifest.num_item_rows)
    train_events = read_vocabulary(folder, manifest).train_events
    popularity = config.model_copy(update={"baselines": ["popularity"]})
    baselines = build_baselines(
        folder, manifest, train_events, NextItemConfig(), popularity, unknown=False, world=world
    )
    write_user_rows(evaluator, model, baselines, parts, lambda done, total: None)
    return evaluator.mean_metrics(model)


def bounds(row: dict[str, Any], split: Split, cuts: Cuts) -> tuple[int, int]:
    """Return where the targets of a row begin and end."""
    length = len(row["item"])
    if split == "test":
        return row["validation_end"], length
    if isinstance(cuts, UserHoldout):
        of_validation = row["train_end"] == 0 and row["validation_end"] == length
        return (max(0, length - cuts.num_targets), length) if of_validation else (length, length)
    return row["train_end"], row["validation_end"]


def protocols() -> Iterator[Any]:
    base: dict[str, Any] = {"ks": KS, "batch_size": 7}
    for cuts, split in ((BY_TIME, "test"), (BY_TIME, "validation"), (LeaveOneOut(7, num_targets=3), "test")):
        for targets in ("all", "first", "each"):
            for repeats in ("keep", "drop"):
                for candidates in ("all", "available", "file"):
                    mask_seen = repeats == "drop"
                    own = {"targets": targets, "repeats": repeats, "candidates": candidates, "mask_seen": mask_seen}
                    name = "-".join(map(str, (type(cuts).__name__, split, *own.values())))
                    yield pytest.param(cuts, split, base | own, id=name)
    for split in ("validation", "test"):
        yield pytest.param(UserHoldout(0.3, 0.3, 2), split, base | {"targets": "each"}, id=f"users-{split}")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a dataset for each split, and a file of candidates in each folder."""
    folders = {}
    for cuts in (BY_TIME, LeaveOneOut(7, num_targets=3), UserHoldout(0.3, 0.3, 2)):
        folder = tmp_path_factory.mktemp("protocol")
        manifest = tiny_dataset(folder, num_users=30, num_items=20, mean_events=12, cuts=cuts)
        values = read_vocabulary(folder, manifest).values.to_pylist()
        pq.write_table(pa.table({"item": [*values[::2], "item-9999"]}), folder / "some.parquet")
        folders[repr(cuts)] = folder
    return folders


def by_hand(folder: Path, split: Split, config: EvaluateConfig, cuts: Cuts) -> dict[int, list[tuple[Query, list[int]]]]:
    manifest = read_manifest(folder)
    rows = plain_rows(folder, manifest)
    first: dict[int, int] = {}
    for row in rows:
        for item, time in zip(row["item"], row["time"], strict=True):
            first[item] = min(time, first.get(item, time))

    def allowed(item: int, moment: int) -> bool:
        if config.candidates == "available":
            return first.get(item, moment + 1) <= moment
        return config.candidates == "all" or item % 2 == 1

    num_items = manifest.counts.num_items
    expected = {}
    for number, row in enumerate(rows):
        queries = queries_of(row, split, config, *bounds(row, split, cuts))
        if queries:
            expected[number] = [(query, ranks_of(query, config, num_items, allowed)) for query in queries]
    return expected


@pytest.mark.pairwise
@pytest.mark.parametrize(("cuts", "split", "settings"), list(protocols()))
def test_queries_candidates_and_repeats_are_those_of_brute_force(
    datasets: dict[str, Path], tmp_path: Path, cuts: Cuts, split: Split, settings: dict[str, Any]
) -> None:
    folder = datasets[repr(cuts)]
    plain = EvaluateConfig(**{**settings, "candidates": settings.get("candidates", "all")})
    file = str(folder / "some.parquet") if plain.candidates == "file" else plain.candidates
    means = evaluated(ALONE, folder, split, plain.model_copy(update={"candidates": file}), tmp_path / "parts")
    merged = merge_parts(tmp_path / "parts").to_table().to_pylist()
    expected = by_hand(folder, split, plain, cuts)
    train_events = read_vocabulary(folder, read_manifest(folder)).train_events
    assert [row["row_id"] for row in merged] == sorted(expected)
    for row in merged:
        queries = expected[row["row_id"]]
        assert row["targets"] == [item for query, _ in queries for item in query.targets]
        assert row["ranks"] == [rank for _, ranks in queries for rank in ranks]
        assert row["history_length"] == len(queries[0][0].history)
        assert len(row["top_items"]) == max(KS) * len(queries)
    by_user: dict[str, list[np.ndarray]] = {}
    for queries in expected.values():
        of_queries = [_metrics_of(query, ranks, train_events) for query, ranks in queries]
        for name in of_queries[0]:
            by_user.setdefault(name, []).append(np.mean([values[name] for values in of_queries], axis=0))
    # Each value with its weight: the mean of a user's queries, then the weighted mean over users.
    sums = {name: np.sum(values, axis=0) for name, values in by_user.items()}
    assert means == pytest.approx({name: above / below for name, (above, below) in sums.items()}, abs=1e-12)
    every = EvaluateConfig(**{**plain.model_dump(), "repeats": "keep"})
    if plain.targets != "first":
        all_targets = sum(
            len(query.targets) for own in by_hand(folder, split, every, cuts).values() for query, _ in own
        )
        kept = sum(len(row["targets"]) for row in merged)
        assert num_repeats(tmp_path / "parts") == (all_targets - kept if plain.repeats == "drop" else 0)


def _metrics_of(query: Query, ranks: list[int], train_events: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return weight times value, and weight, of each metric."""
    bounds = np.asarray([0, len(ranks)])
    columns = user_metrics(np.asarray(query.targets), np.asarray(ranks), bounds, KS, train_events)
    return {name: values.sums for name, values in columns.items()}


@pytest.mark.parametrize("targets", ["all", "each"])
def test_nothing_depends_on_ranks_and_batches(
    rank_pool: RankPool, datasets: dict[str, Path], tmp_path: Path, targets: str
) -> None:
    folder = datasets[repr(BY_TIME)]
    manifest: Manifest = read_manifest(folder)
    outcomes = []
    for number, (world_size, batch_size) in enumerate(((1, 512), (2, 5), (2, 64))):
        config = EvaluateConfig(
            ks=KS,
            batch_size=batch_size,
            targets=targets,
            candidates="available",
            repeats="drop",
            score_block_items=16,  # type: ignore[arg-type]
        )
        parts = tmp_path / f"parts-{number}"
        means = rank_pool.run(world_size, evaluated, folder, "test", config, parts)
        merged, dropped = merge_parts(parts), num_repeats(parts)
        train_events = read_vocabulary(folder, manifest).train_events
        facts = Evaluated("test", "step", config, manifest, train_events, "some", num_repeats=dropped)
        results, _ = summarize(merged, facts)
        outcomes.append((merged.to_table().to_pylist(), dropped, results.metrics, results.ci95, results.slices))
        assert all(mean == pytest.approx(means[0], abs=1e-12) for mean in means)
        assert {name: results.metrics[name] for name in means[0]} == pytest.approx(means[0], abs=1e-12)
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert outcomes[0][1] > 0


def test_items_of_a_file_are_read_in_every_form(datasets: dict[str, Path], tmp_path: Path) -> None:
    folder = datasets[repr(BY_TIME)]
    manifest = read_manifest(folder)
    (tmp_path / "some.txt").write_text("item-0003\n\nitem-0001\nitem-0001\nnothing\n")
    (tmp_path / "some.csv").write_text("item\nitem-0003\nitem-0001\nnothing\n")
    for name in ("some.txt", "some.csv"):
        listed = listed_items(tmp_path / name, folder, manifest, False)
        assert (listed.ids.tolist(), listed.num_unknown) == ([2, 4], 1)
    text = candidates_text(str(tmp_path / "some.txt"), folder, manifest, False)
    assert text == "2 items of some.txt (1 others in it are unknown)"
    (tmp_path / "none.txt").write_text("nothing\n")
    (tmp_path / "two.csv").write_text("item,price\na,1\n")
    for name, message in (
        ("none.txt", "knows none"),
        ("two.csv", "must have one column"),
        ("no.csv", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            listed_items(tmp_path / name, folder, manifest, False)
