"""A loaded model in every case that a caller can bring: forms of histories, times, unknown values, and mistakes."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import shoal
from cluster.config.run_config import Config
from tests.contracts.test_inference import CANDIDATE, FEATURES, TIMES, TWO_LABELS
from tests.settings.lab import Lab
from tests.settings.logs import DAY, NUM_ITEMS, START
from tests.support.rank_pool import RankPool
from tests.support.trained_runs import assert_same, lab_in, loaded, run_of

ROOT = Path(__file__).resolve().parents[3]
HISTORY = ["i03", "i04", "i05"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab_in(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def plain(lab: Lab, rank_pool: RankPool) -> Config:
    return run_of(lab, rank_pool, "events", {})[0]


@pytest.fixture(scope="module")
def model(plain: Config) -> shoal.NextItemRecommender:
    return loaded(plain)


def test_it_starts_neither_ray_nor_a_process_group_and_prints_nothing(plain: Config) -> None:
    program = f"""
import sys, shoal
model = shoal.load({str(plain.run_dir)!r})
assert model.recommend(k=2).num_rows
import torch.distributed
assert not torch.distributed.is_initialized()
assert "ray" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_form_of_a_history_gives_the_same_list(model: shoal.NextItemRecommender) -> None:
    columns = {"user_id": ["me"] * 3, "item_id": HISTORY}
    expected = model.recommend({"me": HISTORY}, 4)
    assert expected.column_names == ["user_id", "item_id", "score", "rank"]
    assert expected.schema.types == [pa.string(), pa.string(), pa.float32(), pa.int32()]
    assert expected.column("user_id").to_pylist() == ["me"] * 4
    assert expected.column("rank").to_pylist() == [1, 2, 3, 4]
    assert np.all(np.diff(expected.column("score").to_numpy()) <= 0)
    table = pa.table(columns)
    unordered = table.append_column("time", pa.array([10, 20, 30])).take(pa.array([2, 0, 1]))
    encoded = table.set_column(1, "item_id", table.column("item_id").dictionary_encode())
    for given in (table, pd.DataFrame(columns), unordered, encoded, table.to_batches()[0], {"me": np.asarray(HISTORY)}):
        assert_same(model.recommend(given, 4), expected)
    anonymous = model.recommend([HISTORY], 4)
    assert_same(anonymous, expected)
    assert anonymous.column("user_id").to_pylist() == [0] * 4


def test_lists_keep_the_order_of_the_users_and_do_not_depend_on_each_other(model: shoal.NextItemRecommender) -> None:
    together = model.recommend([["i01"], [], HISTORY, ["i09"] * 30, ["i01"]], 3)
    assert together.column("user_id").to_pylist() == [user for user in range(5) for _ in range(3)]
    for user, history in ((0, ["i01"]), (2, HISTORY), (3, ["i09"] * 30), (4, ["i01"])):
        of_user = together.filter(pc.equal(together.column("user_id"), user))
        assert_same(of_user, model.recommend([history], 3))


def test_an_empty_history_gets_popular_items_without_scores(lab: Lab, model: shoal.NextItemRecommender) -> None:
    lists = model.recommend({"new": [], "old": HISTORY}, 5, items=["i02", "i03", "i07", "i08"])
    new = lists.filter(pc.equal(lists.column("user_id"), "new"))
    assert new.column("score").null_count == new.num_rows == 4
    assert lists.column("score").null_count == 4
    events = pq.read_table(lab.logs / "events.parquet").to_pandas()
    events = events.drop_duplicates(["user_id", "item_id", "time"]).sort_values("time")
    training = events[events.groupby("user_id").cumcount(ascending=False) >= 2]
    counts = training.groupby("item_id").size().reindex(["i02", "i03", "i07", "i08"], fill_value=0)
    assert new.column("item_id").to_pylist() == counts.sort_values(ascending=False, kind="stable").index.tolist()
    assert model.recommend({}, 5).num_rows == model.recommend([], 5).num_rows == 0
    assert model.recommend([], 5).column_names == lists.column_names
    assert model.score({"new": []}, {"new": ["i01"]}).column("score").null_count == 1
    assert not np.stack(model.user_vectors({"new": []}).column("vector").to_pylist()).any()


def test_lists_end_where_no_item_is_left(model: shoal.NextItemRecommender) -> None:
    every = model.items.to_pylist()
    assert len(every) == NUM_ITEMS
    assert model.recommend([HISTORY], 1000).num_rows == NUM_ITEMS - len(HISTORY)
    assert not set(HISTORY) & set(model.recommend([HISTORY], 1000).column("item_id").to_pylist())
    assert sorted(model.recommend([HISTORY], 1000, filter_viewed=False).column("item_id").to_pylist()) == every
    assert model.recommend([every], 5).num_rows == 0
    assert model.recommend([HISTORY], 5, items=[*HISTORY, "i07", "i07"]).column("item_id").to_pylist() == ["i07"]
    some = model.recommend([HISTORY], 5, items=["i09", "i01", "i12"])
    whole = model.recommend([HISTORY], 1000)
    kept = whole.filter(pc.is_in(whole.column("item_id"), value_set=pa.array(["i01", "i09", "i12"])))
    assert_same(some, kept)


def test_unknown_values_are_refused_warned_of_or_left_out(model: shoal.NextItemRecommender) -> None:
    with pytest.raises(shoal.UserError, match="users: 1 users without a history in the dataset, such as 'nobody'"):
        model.recommend(users=["u03", "nobody"])
    with pytest.warns(UserWarning, match="'nobody'; they get the most popular items"):
        both = model.recommend(users=["nobody", "u03", "nobody"], k=2, on_unknown="warn")
    assert both.column("user_id").to_pylist() == ["nobody"] * 2 + ["u03"] * 2
    assert both.column("score").null_count == 2
    assert_same(model.recommend(users=["nobody", "u03"], k=2, on_unknown="skip"), both.slice(2))
    assert model.recommend(users=["nobody"], on_unknown="skip").num_rows == 0
    with pytest.raises(shoal.UserError, match="items: 1 items that the model does not know, such as 'unheard'"):
        model.recommend([HISTORY], items=["i01", "unheard"])
    assert model.recommend([HISTORY], items=["i01", "unheard"], on_unknown="skip").num_rows == 1
    with pytest.raises(shoal.UserError, match="the model knows none of them"):
        model.recommend([HISTORY], items=["unheard"], on_unknown="skip")
    # In a history they are the unknown item, wherever they come from.
    assert_same(model.recommend([[*HISTORY, "unheard"]]), model.recommend([[*HISTORY, "other"]]))
    assert (
        not model.recommend([[*HISTORY, "unheard"]]).column("score").equals(model.recommend([HISTORY]).column("score"))
    )
    with pytest.warns(UserWarning, match="knows the item of none of the 2 events"):
        model.recommend([["unheard", "other"]])
    scored = model.score([HISTORY], [["unheard", "i07"]], on_unknown="skip")
    assert [value is None for value in scored.column("score").to_pylist()] == [True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.recommend([HISTORY], 0), "k = 0: must be an integer of at least 1"),
        (lambda m: m.recommend([HISTORY], True), "k = True"),
        (lambda m: m.recommend(HISTORY), r"entry 0 is 'i03', and must be a list of items; .* give \[\[\.\.\.\]\]"),
        (lambda m: m.recommend("i03"), "must be a table of Arrow or pandas, not str"),
        (lambda m: m.recommend([[3]]), "must be of the type string"),
        (lambda m: m.recommend([["i03", None]]), "1 values are null"),
        (lambda m: m.recommend(users=[7]), "users: must be of the type string"),
        (lambda m: m.recommend(users="u03"), "users: must be a list of values, not str"),
        (lambda m: m.recommend([HISTORY], users=["u03"]), "give either `histories`, or `users`"),
        (lambda m: m.recommend([HISTORY], on_unknown="ignore", items=["x"]), 'must be "raise", "warn" or "skip"'),
        (
            lambda m: m.recommend(pa.table({"user": ["a"], "item_id": ["i03"]})),
            'no column "user_id" .* there are user, item_id',
        ),
        (
            lambda m: m.recommend(pa.table({"user_id": ["a"], "item_id": [3]})),
            '"item_id" .* holds int64, .* hold string',
        ),
        (lambda m: m.recommend(pa.table({"user_id": ["a", None], "item_id": ["i03"] * 2})), "row 1: null user"),
        (lambda m: m.score({"a": HISTORY}, {"b": ["i03"]}), "1 of 1 are of users whom `histories` does not have"),
        (lambda m: m.score({"a": HISTORY}, pa.table({"user_id": ["a"]})), 'candidates: no column "item_id"'),
        (lambda m: m.recommend(users=["u03"], user_features=pa.table({"x": [1]})), "user_features: stored histories"),
        (lambda m: m.recommend(users=["u03"], at="soon"), "at = 'soon': must be"),
        (lambda m: m.recommend(users=["u03"], at={"u04": 3}), "at: has no moment for 1 of 1 users, such as 'u03'"),
        (lambda m: m.recommend(users=["u03"], at=True), "at = True: must be"),
    ],
)
def test_mistakes_are_named(model: shoal.NextItemRecommender, call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(shoal.UserError, match=message):
        call(model)


def test_similar_items_and_vectors_belong_together(model: shoal.NextItemRecommender) -> None:
    vectors = np.stack(model.item_vectors().column("vector").to_pylist())
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    names = model.items.to_pylist()
    similar = model.similar_items(k=3)
    assert similar.column_names == ["item_id", "similar_item_id", "score", "rank"]
    for item, rows in similar.to_pandas().groupby("item_id"):
        expected = np.argsort(-cosine[names.index(item)], kind="stable")[:3]
        assert rows["similar_item_id"].tolist() == [names[place] for place in expected]
        np.testing.assert_allclose(rows["score"], cosine[names.index(item)][expected], rtol=1e-5)
    some = model.item_vectors(["i09", "i02"])
    np.testing.assert_array_equal(
        np.stack(some.column("vector").to_pylist()), vectors[[names.index("i09"), names.index("i02")]]
    )
    with pytest.raises(shoal.UserError, match="'unheard'"):
        model.similar_items(["unheard"])


def test_times_of_requests(lab: Lab, rank_pool: RankPool) -> None:
    """Every form of a moment means the same, and what is later is left out."""
    model = loaded(run_of(lab, rank_pool, "events", {**TIMES, "model.encoder.kind": "hstu"})[0])
    moment = START + 4 * DAY
    when = datetime(2024, 10, 12, tzinfo=UTC)
    assert int(when.timestamp()) == moment
    expected = model.recommend(users=["u05", "u09"], k=4, at=moment)
    east = when.astimezone(timezone(timedelta(hours=3)))
    forms: list[Any] = [
        when,
        east,
        when.replace(tzinfo=None),
        date(2024, 10, 12),
        "2024-10-12",
        "2024-10-12T02:00:00+02:00",
    ]
    forms += [np.datetime64("2024-10-12"), pd.Timestamp(when), str(moment), {"u05": moment, "u09": when}]
    for form in forms:
        assert model.recommend(users=["u05", "u09"], k=4, at=form).equals(expected), form
    events = pq.read_table(lab.logs / "events.parquet").select(["user_id", "item_id", "time"])
    until = events.filter(pc.less_equal(events.column("time"), moment))
    assert len(until) < len(events)
    for given in (until, events):
        rows = model.recommend(given.filter(pc.equal(given.column("user_id"), "u05")), 4, at=moment)
        assert_same(rows, expected.filter(pc.equal(expected.column("user_id"), "u05")))
    latest = pc.max(events.column("time")).as_py()
    now = model.recommend(k=4)
    assert now.equals(model.recommend(k=4, at=latest))
    own = events.filter(pc.equal(events.column("user_id"), "u05"))
    assert_same(model.recommend(own, 4), now.filter(pc.equal(now.column("user_id"), "u05")))
    later = pa.table({"user_id": ["u09"], "item_id": ["i01"], "time": [latest + 30 * DAY]}).cast(events.schema)
    both = model.recommend(pa.concat_tables([own, later]), 4)
    assert_same(both.filter(pc.equal(both.column("user_id"), "u05")), model.recommend(own, 4))
    asked = [
        model.recommend(own, 1, filter_viewed=False, at=time).column("score")[0].as_py()
        for time in (latest, latest + 30 * DAY)
    ]
    assert asked[0] != asked[1]
    before = model.recommend(users=["u05"], k=4, at=START - DAY)
    assert before.column("score").null_count == 4  # no event yet
    with pytest.raises(
        shoal.UserError, match='lists of items have none; give a table with the columns "user_id", "item_id"'
    ):
        model.recommend([HISTORY])


def test_known_users_keep_their_features(lab: Lab, rank_pool: RankPool) -> None:
    model = loaded(run_of(lab, rank_pool, "events", {"logs.users": FEATURES["logs.users"]})[0])
    users = pq.read_table(lab.logs / "half_users.parquet")
    stored = model.recommend({"u03": HISTORY}, 4)
    assert_same(model.recommend({"u03": HISTORY}, 4, user_features=users), stored)
    other = users.set_column(0, "user_id", pa.array(["u03", *users.column("user_id").to_pylist()[1:]]))
    given = model.recommend({"u03": HISTORY, "u05": HISTORY}, 4, user_features=other)
    assert not given.slice(0, 4).column("score").equals(stored.column("score"))
    assert_same(given.slice(4), model.recommend({"u05": HISTORY}, 4))
    renamed = other.set_column(0, "user_id", pa.array(["x", *users.column("user_id").to_pylist()[1:]]))
    assert_same(given.slice(0, 4), model.recommend({"x": HISTORY}, 4, user_features=renamed))
    stranger = model.recommend({"stranger": HISTORY}, 4)
    assert not stranger.column("score").equals(stored.column("score"))
    assert_same(model.recommend([HISTORY], 4), stranger)
    with pytest.raises(shoal.UserError, match='user_features: no column "shade"'):
        model.recommend({"u03": HISTORY}, user_features=users.drop_columns(["shade"]))


def test_checkpoints_are_found_and_refused(
    lab: Lab, rank_pool: RankPool, plain: Config, model: shoal.NextItemRecommender
) -> None:
    name = model.checkpoint.name
    expected = model.recommend([HISTORY], 4)
    for found in (
        loaded(plain, checkpoint=name),
        loaded(plain, checkpoint=model.checkpoint),
        shoal.load(model.checkpoint),
        loaded(plain, dataset=plain.dataset_dir),
    ):
        assert isinstance(found, shoal.NextItemRecommender)
        assert found.recommend([HISTORY], 4).equals(expected)
    other, _ = run_of(lab, rank_pool, "events", {"tables.item.dim": 4})
    ranker, _ = run_of(lab, rank_pool, "impressions", {})
    for options, message in (
        ({"checkpoint": "step_000000999"}, f"no such checkpoint; .* has .*{name}"),
        ({"checkpoint": loaded(other).checkpoint}, "does not fit the model"),
        ({"dataset": ranker.dataset_dir}, 'is for task "ranking"'),
    ):
        with pytest.raises(shoal.UserError, match=message):
            shoal.load(plain.run_dir, **options)
    with pytest.raises(shoal.UserError, match="is neither the folder of a run"):
        shoal.load(plain.run_dir / "checkpoints")


def test_a_dataset_that_has_grown_is_used_whole(lab: Lab, rank_pool: RankPool, tmp_path: Path) -> None:
    """New users have histories, and new items have the initial rows that training would give them."""
    events = pq.read_table(lab.logs / "events.parquet").select(["user_id", "item_id", "time"])
    (tmp_path / "logs").mkdir()
    pq.write_table(events, tmp_path / "logs" / "a.parquet")
    config, _ = run_of(lab, rank_pool, "events", {"logs.path": str(tmp_path / "logs")})
    before = loaded(config).recommend(users=["u05"], k=4)
    late = int(pc.max(events.column("time")).as_py())
    new = pa.table(
        {"user_id": ["zoe"] * 4, "item_id": ["i01", "brand new", "i02", "i03"], "time": [late + n for n in range(4)]}
    )
    pq.write_table(new, tmp_path / "logs" / "b.parquet")
    lab.prepare(config, config.dataset_dir)
    model = loaded(config)
    assert_same(
        model.recommend(users=["u05"], k=4, items=[i for i in model.items.to_pylist() if i != "brand new"]), before
    )
    assert "zoe" in model.users.to_pylist()
    assert model.recommend(users=["zoe"], k=4).num_rows == 4
    vector = np.asarray(model.item_vectors(["brand new"]).column("vector")[0].as_py())
    assert 0.0 < np.abs(vector).max() < 10.0


def test_mistakes_with_a_ranker_are_named(lab: Lab, rank_pool: RankPool) -> None:
    model = shoal.load(run_of(lab, rank_pool, "impressions", {**CANDIDATE, **TWO_LABELS})[0].run_dir)
    assert isinstance(model, shoal.ImpressionRanker)
    assert model.labels == ("click", "like")
    shown = pq.read_table(lab.logs / "impressions.parquet")
    for call, message in (
        (lambda: model.recommend(items=["i03"], label="click"), "features colour, number of impressions; give a table"),
        (lambda: model.recommend(items=shown, label="buy"), "predicts click, like, and not buy"),
        (lambda: model.recommend(items=shown), "predicts click, like; choose one"),
        (lambda: model.recommend(items=shown.drop_columns(["colour"]), label="click"), 'items: no column "colour"'),
        (lambda: model.score(None, shown.drop_columns(["time"])), 'impressions: no column "time"'),
        (lambda: model.score([["i03"]], shown), "lists of items have none"),
        (lambda: model.recommend(items=shown, label="click", users=["nobody"]), "users: 1 users without a history"),
    ):
        with pytest.raises(shoal.UserError, match=message):
            call()  # type: ignore[no-untyped-call]
    with pytest.warns(UserWarning, match="they are left out"):
        lists = model.recommend(items=shown, label={"click": 1.0}, k=2, users=["nobody", "u03"], on_unknown="warn")
    assert lists.column("user_id").to_pylist() == ["u03", "u03"]
    strangers = model.score(shown.slice(0, 0), shown.slice(0, 5))  # users without any event
    assert strangers.column("click").null_count == 0
