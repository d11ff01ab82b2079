"""A followed user gets the lists that the model gives for the whole history, after each event."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import shoal
from tests.contracts.test_inference import TIMES
from tests.settings.lab import Lab
from tests.settings.logs import DAY
from tests.support.rank_pool import RankPool
from tests.support.trained_runs import assert_same, lab_in, loaded, run_of

HISTORY = ["i03", "i04", "i05", "i09", "i03", "i11"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab_in(tmp_path_factory.mktemp("live"))


@pytest.mark.parametrize("kind", ["sasrec", "ligr"])
def test_lists_after_each_event_are_those_of_the_whole_history(lab: Lab, rank_pool: RankPool, kind: str) -> None:
    model = loaded(run_of(lab, rank_pool, "events", {"model.encoder.kind": kind})[0])
    live = model.follow([])
    assert_same(live.recommend(4), model.recommend([[]], 4))
    for number, item in enumerate(HISTORY, start=1):
        live.append([item])
        assert live.num_events == number
        whole = [HISTORY[:number]]
        assert_same(live.recommend(4), model.recommend(whole, 4))
        assert_same(live.recommend(4, filter_viewed=False), model.recommend(whole, 4, filter_viewed=False))
        some = ["i01", "i09", "i12"]
        assert_same(live.recommend(items=some), model.recommend(whole, items=some))
    at_once = model.follow(HISTORY[:2])
    at_once.append(HISTORY[2:])
    assert_same(at_once.recommend(4), live.recommend(4))


def test_tables_with_times(lab: Lab, rank_pool: RankPool) -> None:
    given: dict[str, Any] = {**TIMES, "model.encoder.kind": "hstu"}
    model = loaded(run_of(lab, rank_pool, "events", given)[0])
    events = pq.read_table(Path(lab.logs) / "events.parquet").select(["user_id", "item_id", "time"])
    own = events.filter(pc.equal(events.column("user_id"), "u05")).sort_by("time")
    live = model.follow(own.slice(0, 3))
    for number in range(3, min(8, own.num_rows)):
        assert_same(live.recommend(4), model.recommend(own.slice(0, number), 4))
        live.append(own.slice(number, 1))
    late = pc.max(own.column("time")).as_py() + 30 * DAY
    whole = own.slice(0, live.num_events)
    assert_same(live.recommend(4, at=late), model.recommend(whole, 4, at=late))
    assert live.recommend(4).column("user_id").to_pylist() == ["u05"] * 4
    for call, message in (
        (lambda: live.append(own.slice(0, 1)), "in the order of their times"),
        (lambda: live.append(events.filter(pc.equal(events.column("user_id"), "u09"))), "are of the user u09"),
        (lambda: live.append(events), "must be of one user, not of"),
        (lambda: live.recommend(at=own.column("time")[0].as_py()), "is before the last event of the history"),
        (lambda: model.follow(HISTORY), "lists of items have none"),
    ):
        with pytest.raises(shoal.UserError, match=message):
            call()


def test_mistakes_are_named(lab: Lab, rank_pool: RankPool) -> None:
    model = loaded(run_of(lab, rank_pool, "events", {})[0])
    live = model.follow(HISTORY)
    with pytest.raises(shoal.UserError, match="k = 0"):
        live.recommend(0)
    with pytest.raises(shoal.UserError, match="'unheard'"):
        live.recommend(items=["unheard"])
    columns = {"user_id": ["a", "b"], "item_id": ["i01", "i02"]}
    with pytest.raises(shoal.UserError, match="must be of one user, not of 2"):
        model.follow(pa.table(columns))
