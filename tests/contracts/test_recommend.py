"""`shoal recommend` writes the lists of the Python API, on any number of workers, once, and as a whole."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shoal
from cluster.config.run_config import Config
from cluster.driver.progress import View, plain_console
from cluster.driver.recommend_stage import run_recommend_stage
from sharding.world import World
from tests.contracts.test_inference import CANDIDATE, TIMES, TWO_LABELS
from tests.settings.entry import Settings
from tests.settings.lab import Lab
from tests.settings.logs import NUM_ITEMS, NUM_USERS, START
from tests.support.rank_pool import RankPool
from tests.support.trained_runs import lab_in, run_of
from trainer.config.job import SILENT
from trainer.errors import UserError
from trainer.recommend.folder import MANIFEST, RecommendationsManifest
from trainer.recommend.request import Options

ITEM_FEATURES: Settings = {
    "logs.items": {"path": "LOGS/items.parquet", "features": {"words": {"kind": "categorical", "separator": "|"}}},
    "evaluate.score_block_items": 16,
}


@dataclass
class PoolWorkers:
    """Workers that are rank processes of the tests. `jobs` counts their jobs."""

    pool: RankPool
    number: int
    jobs: int = 0

    def run(self, function: Any, argument: Any, on_event: Any, stop: Any = None) -> list[Any]:
        self.jobs += 1
        return self.pool.run(self.number, job_of_rank, function, argument)


def job_of_rank(world: World, function: Any, argument: Any) -> Any:
    return function(argument, world, SILENT)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab_in(tmp_path_factory.mktemp("recommend"))


@pytest.fixture(scope="module")
def events(lab: Lab, rank_pool: RankPool) -> Config:
    return run_of(lab, rank_pool, "events", {**TIMES, **ITEM_FEATURES, "model.encoder.kind": "hstu"})[0]


@pytest.fixture(scope="module")
def shown(lab: Lab, rank_pool: RankPool) -> Config:
    return run_of(lab, rank_pool, "impressions", {**CANDIDATE, **TWO_LABELS, "model.kind": "din"})[0]


def written(
    config: Config, pool: RankPool, out: Path, number: int = 1, **options: Any
) -> tuple[pd.DataFrame, RecommendationsManifest, PoolWorkers]:
    """Return the rows by user, the manifest and the workers."""
    workers: Any = PoolWorkers(pool, number)
    with View(plain_console(quiet=True)) as view:
        manifest, folder = run_recommend_stage(config, Options(**options), None, out, workers, view)
    assert sorted([*manifest.files, MANIFEST]) == sorted(path.name for path in folder.iterdir())
    rows = pd.read_parquet(folder)
    assert manifest.num_rows == len(rows)
    by = [rows.columns[0], "rank"]
    return rows.sort_values(by, kind="stable").reset_index(drop=True), manifest, workers


def assert_same(actual: pd.DataFrame, expected: pa.Table | pd.DataFrame) -> None:
    table = expected if isinstance(expected, pd.DataFrame) else expected.to_pandas()
    table = table.sort_values([table.columns[0], "rank"], kind="stable").reset_index(drop=True)
    pd.testing.assert_frame_equal(actual, table, rtol=1e-5, atol=1e-6)
    assert len(actual)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_lists_for_all_users_are_those_of_the_python_api(
    rank_pool: RankPool, events: Config, tmp_path: Path, number: int
) -> None:
    model = shoal.load(events.run_dir)
    for filter_viewed in (True, False):
        rows, manifest, _ = written(events, rank_pool, tmp_path / "out", number, k=4, filter_viewed=filter_viewed)
        assert_same(rows, model.recommend(k=4, filter_viewed=filter_viewed))
        assert (manifest.num_users, manifest.num_workers, manifest.num_popular) == (NUM_USERS, number, 0)
    similar, manifest, _ = written(events, rank_pool, tmp_path / "items", number, k=3, item_to_item=True)
    assert isinstance(model, shoal.NextItemRecommender)
    assert_same(similar, model.similar_items(k=3))
    assert manifest.num_users == NUM_ITEMS


@pytest.mark.parametrize("number", [1, 2])
def test_files_of_users_and_items_choose_them(rank_pool: RankPool, events: Config, tmp_path: Path, number: int) -> None:
    """Users without a history get popular items with a score of null, or nothing."""
    (tmp_path / "users.txt").write_text("u05\nnobody\nu03\nu05\n")
    (tmp_path / "items.csv").write_text("title,item_id\nx,i03\ny,i07\nz,unheard\nw,i11\n")
    given = {
        "users": str(tmp_path / "users.txt"),
        "items": str(tmp_path / "items.csv"),
        "k": 9,
        "at": START + 86_400 * 3,
    }
    with pytest.raises(UserError, match=r"nobody.*--on-unknown warn"):
        written(events, rank_pool, tmp_path / "out", number, **given)
    assert not any(tmp_path.glob("*out*"))
    rows, manifest, _ = written(events, rank_pool, tmp_path / "out", number, **given, on_unknown="warn")
    model = shoal.load(events.run_dir)
    with pytest.warns(UserWarning, match="nobody|unheard"):
        expected = model.recommend(
            users=["u05", "nobody", "u03"],
            items=["i03", "i07", "i11", "unheard"],
            k=9,
            at=given["at"],
            on_unknown="warn",
        )
    assert_same(rows, expected)
    popular = rows[rows["user_id"] == "nobody"]
    assert popular["score"].isna().all()
    assert len(popular) == 3
    assert (manifest.num_users, manifest.num_popular, manifest.num_unknown_users, manifest.num_unknown_items) == (
        3,
        1,
        1,
        1,
    )
    skipped, manifest, _ = written(events, rank_pool, tmp_path / "out", number, **given, on_unknown="skip")
    assert_same(skipped, rows[rows["user_id"] != "nobody"])
    similar, _, _ = written(
        events, rank_pool, tmp_path / "out", number, items=given["items"], k=2, item_to_item=True, on_unknown="skip"
    )
    assert isinstance(model, shoal.NextItemRecommender)
    assert_same(similar, model.similar_items(["i03", "i07", "i11"], 2))


def noted_by_rank(world: World, function: Any, argument: Any) -> tuple[Any, list[tuple[str, int]]]:
    notes: list[tuple[str, int]] = []
    channel = replace(SILENT, note=lambda phase, step, examples=0: notes.append((phase, step)))
    return function(argument, world, channel), notes


class NotedWorkers(PoolWorkers):
    """Workers that keep what each rank notes of its progress."""

    notes: list[list[tuple[str, int]]]

    def run(self, function: Any, argument: Any, on_event: Any, stop: Any = None) -> list[Any]:
        results = self.pool.run(self.number, noted_by_rank, function, argument)
        self.notes = [notes for _, notes in results]
        return [result for result, _ in results]


def test_each_rank_notes_its_progress(rank_pool: RankPool, events: Config, tmp_path: Path) -> None:
    """A rank without progress is killed after `cluster.recovery.start_seconds`."""
    workers = NotedWorkers(rank_pool, 2)
    smaller = events.model_copy(update={"evaluate": events.evaluate.model_copy(update={"batch_size": 4})})
    with View(plain_console(quiet=True)) as view:
        run_recommend_stage(smaller, Options(), None, tmp_path / "out", cast(Any, workers), view)
    for notes in workers.notes:
        assert len(notes) >= 2
        assert notes == [("recommendation", done) for done in range(1, len(notes) + 1)]


def test_it_is_done_once_and_replaced_as_a_whole(rank_pool: RankPool, events: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, _, workers = written(events, rank_pool, out, 2, k=2)
    again, _, idle = written(events, rank_pool, out, 1, k=2)
    assert (workers.jobs, idle.jobs) == (1, 0)
    assert_same(again, first)
    other, manifest, _ = written(events, rank_pool, out, 1, k=3)
    assert list(manifest.files) == ["part-00000.parquet"]
    assert len(other) > len(first)
    (out / "part-00000.parquet").unlink()
    assert written(events, rank_pool, out, 1, k=3)[2].jobs == 1

    class Failing(PoolWorkers):
        def run(self, *arguments: Any) -> list[Any]:
            raise UserError("no more")

    failing: Any = Failing(rank_pool, 1)
    with View(plain_console(quiet=True)) as view, pytest.raises(UserError, match="no more"):
        run_recommend_stage(events, Options(k=5), None, out, failing, view)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing is left of the attempt
    assert written(events, rank_pool, out, 1, k=3)[2].jobs == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="holds no recommendations"):
        written(events, rank_pool, tmp_path / "mine")


@pytest.mark.parametrize("number", [1, 2])
def test_a_ranker_orders_given_candidates(
    lab: Lab, rank_pool: RankPool, shown: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    table = pq.read_table(lab.logs / "impressions.parquet").select(["item_id", "colour", "number"]).slice(0, 40)
    pq.write_table(table, tmp_path / "items.parquet")
    given = {"items": str(tmp_path / "items.parquet"), "k": 4, "labels": {"click": 1.0, "like": 0.5}}
    rows, manifest, _ = written(shown, rank_pool, tmp_path / "out", number, **given)
    model = shoal.load(shown.run_dir)
    assert isinstance(model, shoal.ImpressionRanker)
    assert_same(rows, model.recommend(items=table, k=4, label=given["labels"]))
    assert manifest.options["filter_viewed"] is False
    rows, _, _ = written(shown, rank_pool, tmp_path / "out", number, **given, filter_viewed=True, at=START + 86_400 * 4)
    expected = model.recommend(items=table, k=4, label=given["labels"], filter_viewed=True, at=START + 86_400 * 4)
    assert_same(rows, expected)
    for wrong, message in (
        ({"items": None}, "--items: a ranker"),
        ({"labels": {}}, "--label: the model predicts click, like"),
        ({"labels": {"buy": 1.0}}, "and not buy"),
        ({"item_to_item": True}, "--item-to-item"),
    ):
        with pytest.raises(UserError, match=message):
            written(shown, rank_pool, tmp_path / "out", number, **{**given, **wrong})


def test_many_candidates_are_scored_in_parts(lab: Lab, shown: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.inference import ranking

    table = pq.read_table(lab.logs / "impressions.parquet").select(["item_id", "colour", "number"])
    model = shoal.load(shown.run_dir)
    assert isinstance(model, shoal.ImpressionRanker)
    whole = model.recommend(items=table, label="click")
    monkeypatch.setattr(ranking, "BATCH_ENTRIES", 7)
    monkeypatch.setattr(shoal.loaded.ranker, "SCORES_AT_A_TIME", 40)
    assert_same(whole.to_pandas(), model.recommend(items=table, label="click"))


def test_options_that_do_not_fit_are_refused(rank_pool: RankPool, events: Config, tmp_path: Path) -> None:
    for wrong, message in (
        ({"k": 0}, "--k 0"),
        ({"labels": {"click": 1.0}}, "--label"),
        ({"item_to_item": True, "users": "users.txt"}, "--users"),
        ({"item_to_item": True, "at": 3}, "--at"),
        ({"at": "tomorrow"}, "at = 'tomorrow'"),
        ({"users": str(tmp_path / "absent.txt")}, "absent.txt: cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            written(events, rank_pool, tmp_path / "out", **wrong)
    pq.write_table(pa.table({"user_id": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(UserError, match="holds int64, and the logs of the model string"):
        written(events, rank_pool, tmp_path / "out", users=str(tmp_path / "numbers.parquet"))
    moved = replace(Options(), users=str(tmp_path / "two.csv"))
    (tmp_path / "two.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match='no column "user_id", and several others: a, b'):
        written(events, rank_pool, tmp_path / "out", users=moved.users)
