"""`shoal explain` gives the explanations of the same model in one process, on any number of workers, once, and as a whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import shoal
from cluster.config.run_config import Config, job_of
from cluster.driver.explain_stage import run_explain_stage
from cluster.driver.progress import View, plain_console
from sharding.world import World
from tests.contracts.test_inference import CANDIDATE, TIMES, TWO_LABELS
from tests.contracts.test_recommend import ITEM_FEATURES, PoolWorkers
from tests.settings.lab import Lab
from tests.settings.logs import START
from tests.support.html_page import Page, assert_loads_nothing
from tests.support.rank_pool import RankPool
from tests.support.trained_runs import lab_in, run_of
from trainer.checkpoint import folder as checkpoints
from trainer.config.job import Channel
from trainer.errors import UserError
from trainer.explanation import occlusion
from trainer.explanation.command.folder import MANIFEST, PAGE, ExplanationsManifest
from trainer.explanation.command.request import Options
from trainer.explanation.explained import explained_model, score
from trainer.explanation.heads import head_effects
from trainer.explanation.questions import ask
from trainer.inference.stored import StoredHistories
from trainer.inference.trained_model import load_trained_model

KEYS = ["user_id", "item_id", "rank"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab_in(tmp_path_factory.mktemp("explain"))


@pytest.fixture(scope="module")
def events(lab: Lab, rank_pool: RankPool) -> Config:
    heads = {"model.encoder.attention.num_heads": 2}
    return run_of(lab, rank_pool, "events", {**TIMES, **ITEM_FEATURES, **heads, "model.encoder.kind": "hstu"})[0]


@pytest.fixture(scope="module")
def whole(lab: Lab, rank_pool: RankPool) -> Config:
    """Return a run of a model that sees whole histories: without an event, no older one moves up."""
    more = {"model.max_history": 12, "model.encoder.kind": "sasrec"}
    return run_of(lab, rank_pool, "events", {**TIMES, **ITEM_FEATURES, **more})[0]


@pytest.fixture(scope="module")
def shown(lab: Lab, rank_pool: RankPool) -> Config:
    return run_of(lab, rank_pool, "impressions", {**CANDIDATE, **TWO_LABELS, "model.kind": "din"})[0]


def written(
    config: Config, pool: RankPool, out: Path, number: int = 1, **options: Any
) -> tuple[dict[str, pd.DataFrame], ExplanationsManifest, PoolWorkers]:
    """Return the tables, the manifest and the workers."""
    workers: Any = PoolWorkers(pool, number)
    with View(plain_console(quiet=True)) as view:
        manifest, folder = run_explain_stage(config, Options(**options), None, out, workers, view)
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == {*manifest.files, MANIFEST}
    names = [name for name in ("events", "heads", "sets") if (folder / name).exists()]
    tables = {name: pd.read_parquet(folder / name) for name in names}
    assert manifest.num_rows == len(tables["events"])
    by = {"events": [*KEYS, "method", "position"], "heads": [*KEYS, "layer", "head"], "sets": KEYS}
    return (
        {name: table.sort_values(by[name], ignore_index=True) for name, table in tables.items()},
        manifest,
        workers,
    )


def test_values_on_any_number_of_workers_are_those_of_one_process(
    rank_pool: RankPool, events: Config, tmp_path: Path
) -> None:
    one, manifest, _ = written(events, rank_pool, tmp_path / "out", 1, sample=9, seed=3, k=2, method="occlusion")
    two, _, _ = written(events, rank_pool, tmp_path / "two", 2, sample=9, seed=3, k=2, method="occlusion")
    assert set(one) == {"events", "heads", "sets"}
    for name, table in one.items():
        pd.testing.assert_frame_equal(table, two[name], rtol=1e-4, atol=1e-5)
    assert (manifest.num_users, manifest.num_without, manifest.num_questions) == (9, 0, 18)
    trained = load_trained_model(job_of(events), checkpoints.to_evaluate(events.run_dir / "checkpoints", print))
    model = explained_model(trained)
    rows = one["events"]
    best = shoal.load(events.run_dir).recommend(users=sorted(set(rows["user_id"])), k=2).to_pandas()
    wanted = rows.drop_duplicates(KEYS)[["user_id", "item_id", "rank", "score"]]
    pd.testing.assert_frame_equal(
        wanted.reset_index(drop=True),
        best.sort_values(["user_id", "item_id"], ignore_index=True)[["user_id", "item_id", "rank", "score"]],
        check_dtype=False,
        rtol=1e-4,
    )
    stored = StoredHistories(trained)
    for keys, of_item in rows.groupby(KEYS):
        users = stored.users.filter(np.asarray(stored.users) == keys[0])
        history = stored.read(users, stored.rows_of(users))
        target = trained.item_ids(trained.item_values.filter(np.asarray(trained.item_values) == keys[1]))
        asked = ask(
            history.packed, np.zeros(1, np.int64), history.lengths, target, history.requested_at, model.max_events
        )
        np.testing.assert_allclose(of_item["value"], occlusion.attribute(model, asked).values, rtol=1e-3, atol=1e-5)
        first = int(history.lengths[0]) - int(asked.lengths[0])
        assert of_item["position"].tolist() == list(range(first + 1, int(history.lengths[0]) + 1))
        effects = head_effects(model, asked)
        own = one["heads"].merge(of_item[KEYS].drop_duplicates())
        np.testing.assert_allclose(own["effect"], effects.effects[0], rtol=1e-3, atol=1e-5)


def test_the_effect_of_a_head_is_the_fall_without_its_columns(events: Config) -> None:
    """A head without values, which the output projection ignores, is a head without output."""
    trained = load_trained_model(job_of(events), checkpoints.to_evaluate(events.run_dir / "checkpoints", print))
    model = explained_model(trained)
    stored = StoredHistories(trained)
    history = stored.read(stored.users, np.arange(len(stored.users)))
    rows = np.arange(len(stored.users))
    asked = ask(history.packed, rows, history.lengths, rows % 16 + 1, history.requested_at, model.max_events)
    effects = head_effects(model, asked)
    assert effects.heads[:2] == (0, 1)
    assert effects.layers[0] == "block 1"
    attention = trained.model.encoder.blocks[0].attention
    queries, keys, *_ = attention.sizes
    own = [
        attention.attention_output.weight[:, : attention.head_width],
        attention.query_key_value.weight[queries + keys : queries + keys + attention.head_width],
    ]
    kept = [weight.clone() for weight in own]
    whole = score(model, asked)
    for weight in own:
        weight.zero_()
    without = score(model, asked)
    for weight, before in zip(own, kept, strict=True):
        weight.copy_(before)
    np.testing.assert_allclose(effects.effects[:, 0], whole - without, rtol=1e-3, atol=1e-5)
    assert np.abs(effects.effects).min(0).max() > 0


def test_it_is_done_once_and_the_page_is_whole(rank_pool: RankPool, events: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, _, workers = written(events, rank_pool, out, 1, users="u05,u03", k=1, shown=2)
    again, _, idle = written(events, rank_pool, out, 1, users="u05,u03", k=1, shown=2)
    assert (workers.jobs, idle.jobs) == (1, 0)
    pd.testing.assert_frame_equal(first["events"], again["events"])
    assert sorted(set(first["events"]["user_id"])) == ["u03", "u05"]
    page = (out / PAGE).read_text(encoding="utf-8")
    assert_loads_nothing(page)
    parsed = Page(page)
    assert parsed.open == []
    assert {"User u03", "User u05"} <= set(parsed.text.split("  ")) or "u05" in parsed.text
    assert "Measured on 2 users" in parsed.text
    assert "2 users are few" in parsed.text
    assert "Where attention goes" in parsed.text
    bars = sum(attributes.get("title", "").startswith("event ") for tag, attributes in parsed.tags if tag == "li")
    assert bars == len(first["events"])
    assert json.loads((out / MANIFEST).read_text())["options"]["users"] == "u05,u03"
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "mine.txt").touch()
    with pytest.raises(UserError, match=r"holds no explanations; choose another folder with --out"):
        written(events, rank_pool, tmp_path / "busy", 1, users="u05")
    assert not any(tmp_path.glob("*attempt*"))


@pytest.mark.parametrize("filter_viewed", [False, True])
def test_a_set_changes_the_best_item(rank_pool: RankPool, whole: Config, tmp_path: Path, filter_viewed: bool) -> None:
    """Without the events of the set, the Python API recommends the new item. No item of the whole history is a candidate."""
    options = {"sample": 24, "filter_viewed": filter_viewed, "measure": False}
    sets = written(whole, rank_pool, tmp_path / "out", 1, **options)[0]["sets"]
    changed = sets[sets["is_changed"]]
    assert len(changed) > 4
    model = shoal.load(whole.run_dir)
    logs = pq.read_table(whole.logs.path).to_pandas()
    # A row that the log repeats is one event, as in the dataset that positions count.
    logs = logs.drop_duplicates(["user_id", "item_id", "time"]).sort_values("time", kind="stable")
    num_returned = 0
    for row in changed.to_dict("records"):
        own = logs[logs["user_id"] == row["user_id"]].reset_index(drop=True)
        removed = np.asarray(row["positions"]) - 1
        assert own["item_id"][removed].tolist() == list(row["event_item_ids"])
        best = []
        for events in (own, own.drop(index=removed)):
            given = pa.Table.from_pandas(events, preserve_index=False)
            listed = model.recommend(given, 16, filter_viewed=False, at=int(logs["time"].max())).column("item_id")
            kept = [item for item in listed.to_pylist() if not filter_viewed or item not in set(own["item_id"])]
            best.append(kept[0])
        assert best[0] == row["item_id"] != row["new_item_id"] == best[1]
        with_filter = model.recommend(given, 1, filter_viewed=True, at=int(logs["time"].max())).column("item_id")
        num_returned += filter_viewed and with_filter[0].as_py() in row["event_item_ids"]
    assert not filter_viewed or num_returned, "an item of a removed event would be the best one if it were a candidate"


def test_one_history_in_this_process(rank_pool: RankPool, events: Config, tmp_path: Path) -> None:
    rows = written(events, rank_pool, tmp_path / "out", 1, users="u05", method="occlusion", measure=False)[0]["events"]
    model = shoal.load(events.run_dir)
    assert isinstance(model, shoal.NextItemRecommender)
    logs = pq.read_table(events.logs.path)
    own = logs.filter(pc.equal(logs.column("user_id"), "u05")).sort_by("time")
    item = rows["item_id"].iloc[0]
    at = int(logs.column("time").to_numpy().max())
    table = model.explain(own, item, at=at).to_pandas()
    newest_first = rows.sort_values("position", ascending=False, ignore_index=True)
    assert table["position"].tolist() == newest_first["position"].tolist()
    assert table["item_id"].tolist() == newest_first["event_item_id"].tolist()
    np.testing.assert_allclose(table["value"], newest_first["value"], rtol=1e-3, atol=1e-5)
    sampled = model.explain(own, item, at=at, method="integrated_gradients_sampled")
    assert np.isfinite(sampled.column("value").to_numpy()).all()
    with pytest.raises(UserError, match="no such method; choose one of attention"):
        model.explain(own, item, method="guessing")
    with pytest.raises(UserError, match="unheard"):
        model.explain(own, "unheard")


def test_one_pair_and_what_cannot_be_explained(rank_pool: RankPool, events: Config, tmp_path: Path) -> None:
    rows = written(events, rank_pool, tmp_path / "pair", 1, user="u07", item="i03")[0]["events"]
    assert set(rows["item_id"]) == {"i03"}
    assert rows["rank"].isna().all()
    assert not (tmp_path / "pair" / "sets").exists()
    for options, message in (
        ({"users": "u07,nobody"}, "no history of 1 of 2 users, such as nobody"),
        ({"user": "u07", "item": "unheard"}, "--item unheard: the model does not know"),
        ({"users": "u07", "at": START - 1}, "none of the users has an event before the request"),
        ({"method": "guessing"}, "--method guessing: there is no such method"),
    ):
        with pytest.raises(UserError, match=message):
            written(events, rank_pool, tmp_path / "no", 1, **options)
    assert not (tmp_path / "no").exists()


def test_the_latest_impressions_of_a_ranker(rank_pool: RankPool, shown: Config, tmp_path: Path) -> None:
    rows, manifest, _ = written(shown, rank_pool, tmp_path / "out", 2, users="u01,u02", k=2, label="click")
    assert manifest.num_questions == len(rows["events"].drop_duplicates(KEYS)) >= 2
    logs = pq.read_table(shown.logs.path).to_pandas()
    for user, own in rows["events"].groupby("user_id"):
        latest = logs[logs["user_id"] == user].sort_values("time")["item_id"].iloc[-1]
        assert own[own["rank"] == 1]["item_id"].iloc[0] == latest
    assert_loads_nothing((tmp_path / "out" / PAGE).read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", ["occlusion", "integrated_gradients_sampled"])
def test_one_impression_of_a_ranker_in_this_process(
    rank_pool: RankPool, shown: Config, tmp_path: Path, method: str
) -> None:
    rows = written(shown, rank_pool, tmp_path / "out", 1, users="u01,u02", label="like", method=method, measure=False)[
        0
    ]["events"]
    model = shoal.load(shown.run_dir)
    assert isinstance(model, shoal.ImpressionRanker)
    logs = pq.read_table(shown.logs.path)
    for user, explained in rows.groupby("user_id"):
        own = logs.filter(pc.equal(logs.column("user_id"), user)).sort_by("time")
        latest = own.slice(own.num_rows - 1)
        table = model.explain(None, latest, label="like", method=method).to_pandas()
        newest_first = explained.sort_values("position", ascending=False, ignore_index=True)
        assert table["position"].tolist() == newest_first["position"].tolist()
        assert table["item_id"].tolist() == newest_first["event_item_id"].tolist()
        assert table["time"].is_monotonic_decreasing
        if method == "occlusion":  # the others compare with histories that each of the two draws
            np.testing.assert_allclose(table["value"], newest_first["value"], rtol=1e-3, atol=1e-5)
        assert np.isfinite(table["value"]).all()
        assert table["value"].abs().max() > 0


def test_an_impression_that_cannot_be_explained_is_refused(shown: Config) -> None:
    model = shoal.load(shown.run_dir)
    assert isinstance(model, shoal.ImpressionRanker)
    logs = pq.read_table(shown.logs.path)
    own = logs.filter(pc.equal(logs.column("user_id"), "u01")).sort_by("time")
    latest = own.slice(own.num_rows - 1)
    unheard = latest.set_column(latest.column_names.index("item_id"), "item_id", pa.array(["unheard"]))
    for history, impression, options, message in (
        (None, own.slice(0, 2), {"label": "click"}, "must have one row, not 2"),
        (None, latest, {}, "the model predicts click, like"),
        (None, latest, {"label": "click", "method": "guessing"}, "no such method; choose one of attention"),
        (None, unheard, {"label": "click"}, "does not know the item 'unheard'"),
        (logs, latest, {"label": "click"}, "of the user of the impression alone"),
        (own.slice(0, 0), latest, {"label": "click"}, "no event before the time of the impression"),
        (None, latest.drop_columns(["user_id"]), {"label": "click"}, 'impression: no column "user_id"'),
    ):
        with pytest.raises(UserError, match=message):
            model.explain(history, impression, **options)


class Watching(View):
    """A view that keeps the events of workers."""

    def __init__(self) -> None:
        super().__init__(plain_console(quiet=True))
        self.events: list[dict[str, Any]] = []

    def on_event(self, event: dict[str, Any]) -> None:
        super().on_event(event)
        self.events.append(event)


def job_with_events(world: World, function: Any, argument: Any) -> tuple[Any, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    result = function(argument, world, Channel(events.append, lambda: False))
    return result, events


class WatchedWorkers(PoolWorkers):
    """Workers with events, which are passed on after the job."""

    def run(self, function: Any, argument: Any, on_event: Any, stop: Any = None) -> list[Any]:
        results = self.pool.run(self.number, job_with_events, function, argument)
        for event in (event for _, events in results for event in events):
            on_event(event)
        return [result for result, _ in results]


def test_progress_counts_the_users_of_all_workers(rank_pool: RankPool, events: Config, tmp_path: Path) -> None:
    """Workers have different numbers of users: twice those of the first one is not the number of all."""
    for number in (1, 2):
        workers: Any = WatchedWorkers(rank_pool, number)
        with Watching() as view:
            options = Options(sample=9, seed=3, measure=False)
            manifest, _ = run_explain_stage(events, options, None, tmp_path / str(number), workers, view)
        counts = [event["owners"] for event in view.events if event["kind"] == "explain"]
        assert counts[-1] == manifest.num_users == 9
        assert counts == sorted(counts)
