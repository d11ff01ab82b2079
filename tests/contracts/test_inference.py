"""A model loaded into one process gives the scores of the evaluation of its checkpoint, whatever trained it, from raw values.

Each form is trained on one or two ranks with every kind of input that it has. Histories are then given as raw events, to a process
without a process group. A user alone gives the same as all users together.
"""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import shoal
from models.encoders.config import EncoderKind
from models.ranking.presets import RankerKind
from sharding.world import World
from tests.settings.entry import Settings
from tests.settings.lab import Lab
from tests.settings.logs import DAY, START
from tests.support.rank_pool import RankPool
from tests.support.trained_runs import lab_in, run_of, trained
from trainer.checkpoint.folder import to_evaluate
from trainer.config.job import Job
from trainer.data.dataset.manifest import read_manifest
from trainer.loop.build import build_model, load_for_evaluation

TOLERANCE = 1e-5  # relative to the largest score; the order of sums may differ
TOP = 5

FEATURES: Settings = {
    "logs.features": {
        "colour": {"kind": "categorical"},
        "number": {"kind": "numeric"},
        "vector": {"kind": "vector", "dim": 3},
    },
    "logs.items": {"path": "LOGS/items.parquet", "features": {"words": {"kind": "categorical", "separator": "|"}}},
    "logs.users": {
        "path": "LOGS/half_users.parquet",
        "features": {"shade": {"kind": "categorical"}, "tally": {"kind": "numeric"}},
    },
}
TIMES: Settings = {"model.inputs.time": ["gap", "hour", "weekday"], "model.inputs.request_time": True}
EVENT_FORMS: dict[str, Settings] = {
    **{kind: {"model.encoder.kind": kind} for kind in get_args(EncoderKind)},
    "features": FEATURES,
    "masked items, features, times": {**FEATURES, **TIMES, "model.encoder.kind": "bert4rec"},
    "times, weight EMA": {**TIMES, "model.encoder.kind": "hstu", "train.ema_decay": 0.5},
    "dynamic ids": {**FEATURES, "tables.shade.ids": {"kind": "dynamic", "num_rows": 6, "admit_after": 1}},
    "hashed items, bags": {
        **FEATURES,
        "tables.item.ids": {"kind": "hash", "num_rows": 9},
        "tables.words.lookup": "bags",
    },
}
CANDIDATE: Settings = {
    "logs.features": {"colour": {"kind": "categorical"}, "number": {"kind": "numeric"}},
    "model.inputs.candidate_features": ["colour", "number"],
    "model.inputs.event_features": ["colour"],
}
TWO_LABELS: Settings = {"logs.labels": ["click", "like"], "logs.outcomes": ["conversion"]}
SHOWN_FORMS: dict[str, Settings] = {
    **{kind: {"model.kind": kind} for kind in get_args(RankerKind)},
    "features, two labels": {**CANDIDATE, **TWO_LABELS, "model.kind": "din", "logs.users": FEATURES["logs.users"]},
    "times, dynamic ids": {
        **TIMES,
        "logs.features": {"colour": {"kind": "categorical", "column": "shade"}},
        "model.kind": "hstu",
        "tables.colour.ids": {"kind": "dynamic", "num_rows": 6, "admit_after": 1},
        "train.ema_decay": 0.5,
    },
}
HEADS: Settings = {"bst": {"model.encoder.attention.num_heads": 2}, "sim": {"model.interest.attention.num_heads": 2}}


def on_ranks(forms: dict[str, Settings]) -> list[Any]:
    """Return every form with one or two ranks in turn."""
    return [pytest.param(form, 1 + place % 2, id=f"{form}-{1 + place % 2}") for place, form in enumerate(forms)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab_in(tmp_path_factory.mktemp("inference"))


def trained_on(world: World, job: Job) -> Any:
    """Train, and return a model with the weights that evaluation uses. Collective."""
    trained(world, job)
    built = build_model(job, read_manifest(job.dataset_dir), world)
    load_for_evaluation(to_evaluate(job.checkpoints_dir, print), built)
    return built


def lists_of_rank(world: World, job: Job) -> dict[str, tuple[list[int], list[float], int]]:
    """Return items, scores and the time of the target for each user of this rank."""
    built = trained_on(world, job)
    evaluator: Any = built.task.evaluator("test", world, built.dynamic)
    reader = evaluator.held_out.reader
    reader = type(reader)(
        job.dataset_dir, read_manifest(job.dataset_dir), replace(reader.selection, users=True, times=True)
    )
    evaluator = replace(evaluator, held_out=replace(evaluator.held_out, reader=reader))
    result = {}
    for held, ranked in evaluator.rank_all(built.model, TOP):
        lists = zip(held.users.to_pylist(), ranked.top_items.tolist(), ranked.top_scores.tolist(), strict=True)
        times = held.target_times[held.target_offsets[:-1]].tolist()
        result |= {user: (items, scores, time) for (user, items, scores), time in zip(lists, times, strict=True)}
    return result


def before_test(lab: Lab) -> pd.DataFrame:
    """Return the raw events of users with enough of them, all but the last of each."""
    events = pq.read_table(lab.logs / "events.parquet").to_pandas()
    events = events.drop_duplicates(["user_id", "item_id", "time"]).sort_values("time", kind="stable")
    last = events.groupby("user_id").cumcount(ascending=False) == 0
    return events[~last].sample(frac=1.0, random_state=1)


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert expected.size
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize(("form", "num_ranks"), on_ranks(EVENT_FORMS))
def test_a_next_item_model_recommends_as_it_is_evaluated(
    lab: Lab, rank_pool: RankPool, form: str, num_ranks: int
) -> None:
    config, parts = run_of(lab, rank_pool, "events", EVENT_FORMS[form], num_ranks, lists_of_rank)
    expected = {user: answer for part in parts for user, answer in part.items()}
    assert len(expected) > 20
    model = shoal.load(config.run_dir)
    assert isinstance(model, shoal.NextItemRecommender)
    events = before_test(lab)
    at = {user: time for user, (_, _, time) in expected.items()}
    events = events[events["user_id"].isin(list(at))]
    users = pq.read_table(lab.logs / "half_users.parquet")
    together = model.recommend(events, TOP, at=at, user_features=users)
    lists = dict(list(together.to_pandas().groupby("user_id")))
    assert set(lists) == set(expected)
    ids = {value: place + 1 for place, value in enumerate(model.items.to_pylist())}
    spread = np.concatenate([scores for _, scores, _ in expected.values()])
    assert spread.std() > 0.01 * np.abs(spread).max()
    for user, (items, scores, _) in expected.items():
        rows = lists[user]
        assert rows["rank"].tolist() == list(range(1, len(rows) + 1))
        assert [ids[item] for item in rows["item_id"]] == [item for item in items if item]
        assert_close(rows["score"].to_numpy(), np.asarray(scores[: len(rows)]))
    for user in [*expected][::7]:
        alone = model.recommend(events[events["user_id"] == user], TOP, at=at[user])  # its features are the dataset's
        assert alone.column("item_id").to_pylist() == lists[user]["item_id"].tolist()
        assert_close(alone.column("score").to_numpy(), lists[user]["score"].to_numpy())
        scored = model.score(
            events[events["user_id"] == user], {user: alone.column("item_id").to_pylist()}, at=at[user]
        )
        assert_close(scored.column("score").to_numpy(), alone.column("score").to_numpy())
    vectors = model.user_vectors(events, at=at, user_features=users)
    items_table = model.item_vectors()
    products = np.stack(vectors.column("vector").to_pylist()) @ np.stack(items_table.column("vector").to_pylist()).T
    for user, row in zip(vectors.column("user_id").to_pylist(), products, strict=True):
        assert_close(row[[ids[item] - 1 for item in lists[user]["item_id"]]], lists[user]["score"].to_numpy())


def probabilities_of_rank(world: World, job: Job) -> dict[tuple[int, int], list[float]]:
    """Return the probabilities of each held-out impression of this rank, by row of the dataset and number in it."""
    built = trained_on(world, job)
    evaluator: Any = built.task.evaluator("test", world, built.dynamic)
    result = {}
    for held, logits in evaluator.score_all(built.model):
        keys = zip(held.row_ids[held.batch.history_of.numpy()].tolist(), held.place.tolist(), strict=True)
        result |= dict(zip(keys, torch.sigmoid(torch.as_tensor(logits)).tolist(), strict=True))
    return result


@pytest.mark.parametrize(("form", "num_ranks"), on_ranks(SHOWN_FORMS))
def test_a_ranker_scores_impressions_as_it_is_evaluated(
    lab: Lab, rank_pool: RankPool, form: str, num_ranks: int
) -> None:
    settings = {**SHOWN_FORMS[form], **HEADS.get(form, {})}
    config, parts = run_of(lab, rank_pool, "impressions", settings, num_ranks, probabilities_of_rank)
    expected = {key: values for part in parts for key, values in part.items()}
    assert len(expected) > 20
    model = shoal.load(config.run_dir)
    assert isinstance(model, shoal.ImpressionRanker)
    shown = pq.read_table(lab.logs / "impressions.parquet").to_pandas()
    # Impressions of a user at one time keep the order of the log.
    shown = shown.sort_values("time", kind="stable")
    shown["place"] = shown.groupby("user_id").cumcount()
    row_of = {user: row for row, user in enumerate(model.users.to_pylist())}
    test = shown[shown["time"] >= START + 7 * DAY].sample(frac=1.0, random_state=1)
    assert len(test) == len(expected)
    wanted = np.asarray([expected[row_of[u], p] for u, p in zip(test["user_id"], test["place"], strict=True)])
    assert wanted.std(axis=0).min() > 1e-3
    clicked = shown[shown["click"] > 0]
    users = pq.read_table(lab.logs / "half_users.parquet")
    for actual in (model.score(None, test), model.score(clicked, pa.Table.from_pandas(test), user_features=users)):
        assert actual.column("item_id").to_pylist() == test["item_id"].tolist()
        assert actual.column_names[3:] == list(model.labels)
        assert_close(np.stack([actual.column(label).to_numpy() for label in model.labels], axis=1), wanted)
    user = test["user_id"].iloc[0]
    alone = model.score(None, test[test["user_id"] == user])
    assert_close(alone.column(3).to_numpy(), wanted[test["user_id"].to_numpy() == user, 0])
    # Candidates of a user at a time are impressions there.
    label, moment = model.labels[0], int(test["time"].max()) + 1
    items = test.drop_duplicates("item_id")
    lists = model.recommend(None, 3, items=pa.Table.from_pandas(items), label=label, users=[user], at=moment)
    pairs = pa.Table.from_pandas(items.assign(user_id=user, time=moment))
    scores = (
        model.score(None, pairs).to_pandas().sort_values(["item_id"]).sort_values(label, ascending=False, kind="stable")
    )
    assert lists.column("item_id").to_pylist() == scores["item_id"].tolist()[:3]
    assert_close(lists.column("score").to_numpy(), scores[label].to_numpy()[:3])
