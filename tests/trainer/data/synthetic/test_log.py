"""The planted structure is there, is what truth/ says, and depends on the config only."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from cluster.data.synth import synthesize
from trainer.data.synthetic.log import (
    BlockSummary,
    SyntheticConfig,
    SyntheticWorld,
    build_world,
    generate,
    generate_block,
)
from trainer.errors import UserError

DEMO = SyntheticConfig(num_users=4000, users_per_file=1500)
SMALL = SyntheticConfig(num_users=250, num_items=200, num_patterns=10, mean_events_per_user=12.0, users_per_file=100)

Numbers = NDArray[np.int64]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "log"
    generate(DEMO, folder)
    return folder


def read(folder: Path, name: str) -> dict[str, NDArray[np.int64]]:
    table = pq.read_table(folder / name)
    return {column: table[column].to_numpy() for column in table.column_names}


def read_all(folder: Path, pattern: str) -> dict[str, Numbers]:
    tables = [read(folder, str(path.relative_to(folder))) for path in sorted(folder.glob(pattern))]
    return {column: np.concatenate([table[column] for table in tables]) for column in tables[0]}


def by_user(folder: Path) -> dict[str, Numbers]:
    """Return all events ordered by user and time."""
    events = read_all(folder, "events-*.parquet")
    order = np.lexsort((events["time"], events["user_id"]))
    return {column: values[order] for column, values in events.items()}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- determinism and the folder


def backwards(config: SyntheticConfig, world: SyntheticWorld, folder: Path) -> Iterator[BlockSummary]:
    return (generate_block(config, world, index, folder) for index in reversed(range(config.num_blocks)))


def test_the_bytes_depend_on_the_config_alone(tmp_path: Path) -> None:
    assert generate(SMALL, tmp_path / "a") == generate(SMALL, tmp_path / "b", make_blocks=backwards)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    generate(SMALL.model_copy(update={"seed": 2}), tmp_path / "c")
    other = content(tmp_path / "c")
    assert all(other[name] != data for name, data in content(tmp_path / "a").items())


def test_a_block_needs_no_other_block(tmp_path: Path) -> None:
    generate(SMALL, tmp_path / "whole")
    generate_block(SMALL, build_world(SMALL), 1, tmp_path / "alone")
    whole, alone = content(tmp_path / "whole"), content(tmp_path / "alone")
    assert sorted(alone) == ["events-00001.parquet", "truth/causes-00001.parquet"]
    assert all(whole[name] == data for name, data in alone.items())


@pytest.mark.usefixtures("ray_session")
def test_ray_tasks_make_the_same_bytes(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"users_per_file": 25})
    steps: list[tuple[int, int]] = []
    summary = synthesize(config, tmp_path / "ray", lambda done, total: steps.append((done, total)))
    assert summary == generate(config, tmp_path / "local")
    assert steps == [(done, 10) for done in range(1, 11)]
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_a_finished_log_is_left_alone(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    first = generate(SMALL, tmp_path / "log", lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "log").rglob("*")}
    assert generate(SMALL, tmp_path / "log") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "log").rglob("*")} == before


def test_any_other_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("dear diary")
    with pytest.raises(UserError, match=r"notes.*not empty.*delete"):
        generate(SMALL, tmp_path / "notes")
    assert content(tmp_path / "notes") == {"mine.txt": b"dear diary"}
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"file: .*choose another folder"):
        generate(SMALL, tmp_path / "file")

    generate(SMALL, tmp_path / "log")
    with pytest.raises(UserError, match="other settings"):
        generate(SMALL.model_copy(update={"seed": 2}), tmp_path / "log")
    (tmp_path / "log" / "events-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"events-00001\.parquet is missing"):
        generate(SMALL, tmp_path / "log")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        generate(SMALL, tmp_path / "file" / "log")


def test_an_interrupted_log_is_refused(tmp_path: Path) -> None:
    def dies(config: SyntheticConfig, world: SyntheticWorld, folder: Path) -> Iterator[BlockSummary]:
        yield generate_block(config, world, 0, folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(SMALL, tmp_path / "log", make_blocks=dies)
    with pytest.raises(UserError, match="interrupted"):
        generate(SMALL, tmp_path / "log")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_items": 100}, "2 x num_patterns"),
        ({"mean_events_per_user": 900.0}, "at most half"),
        ({"pattern_min_lag": 9}, "must not exceed"),
        ({"transition_share": 0.9}, "at most 1"),
        ({"time_span_seconds": 100}, "time_span_seconds must be at least"),
        ({"num_user": 3}, "Extra inputs"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SyntheticConfig.model_validate(setting)


# ---- the log


def test_the_log_is_a_log(demo: Path) -> None:
    files = [read(demo, path.name) for path in sorted(demo.glob("events-*.parquet"))]
    assert len(files) == 3
    schema = pq.read_schema(demo / "events-00000.parquet")
    assert [(field.name, str(field.type)) for field in schema] == [
        ("user_id", "int64"),
        ("item_id", "int64"),
        ("time", "int64"),
        ("category", "int32"),
    ]
    for index, file in enumerate(files):
        assert (np.diff(file["time"]) >= 0).all()
        assert (np.diff(file["user_id"]) != 0).mean() > 0.9, "users are interleaved"
        assert set(np.unique(file["user_id"] // DEMO.users_per_file)) == {index}
    events = by_user(demo)
    users, lengths = np.unique(events["user_id"], return_counts=True)
    assert users.tolist() == list(range(DEMO.num_users))
    assert lengths.min() >= 5
    assert lengths.mean() == pytest.approx(DEMO.mean_events_per_user, rel=0.05)
    assert lengths.std() > 0.5 * lengths.mean(), "the tail of lengths is long"
    same_user = np.diff(events["user_id"]) == 0
    assert (np.diff(events["time"])[same_user] > 0).all(), "a user's times rise strictly"
    assert events["time"].min() >= DEMO.start_time
    assert events["time"].max() < DEMO.start_time + DEMO.time_span_seconds
    pairs = events["user_id"] * DEMO.num_items + events["item_id"]
    assert np.unique(pairs).size == pairs.size, "no item occurs twice in a history"


def test_histories_stay_without_repeats_where_the_catalogue_is_small(tmp_path: Path) -> None:
    config = SyntheticConfig(
        num_users=300, num_items=100, num_patterns=5, num_categories=5, mean_events_per_user=45.0, popularity_skew=2.0
    )
    generate(config, tmp_path / "log")
    events = by_user(tmp_path / "log")
    pairs = events["user_id"] * config.num_items + events["item_id"]
    assert np.unique(pairs).size == pairs.size
    assert np.unique(events["user_id"], return_counts=True)[1].max() <= config.max_events_per_user == 45


def test_the_summary_counts(tmp_path: Path) -> None:
    summary = generate(SMALL, tmp_path / "log")
    events, causes = by_user(tmp_path / "log"), read_all(tmp_path / "log", "truth/causes-*.parquet")
    patterns = read(tmp_path / "log", "truth/patterns.parquet")
    assert summary.num_events == events["user_id"].size
    assert summary.num_effects == causes["user_id"].size == np.isin(events["item_id"], patterns["effect_item"]).sum()
    assert summary.num_causes == np.isin(events["item_id"], patterns["cause_item"]).sum()
    assert (summary.num_users, summary.num_items, summary.num_files) == (250, 200, 3)


# ---- popularity, categories, tastes


def test_popularity_is_skewed_as_planted(demo: Path) -> None:
    planted = read(demo, "truth/items.parquet")["popularity"]
    free = np.flatnonzero(planted > 0)
    ranked = np.sort(planted[free])[::-1]
    slope = np.polyfit(np.log(1 + np.arange(free.size)), np.log(ranked), 1)[0]
    assert slope == pytest.approx(-DEMO.popularity_skew, abs=1e-6)
    counts = np.bincount(by_user(demo)["item_id"], minlength=DEMO.num_items)[free]
    by_rank = counts[np.argsort(-planted[free])]
    assert by_rank[:90].mean() > 3 * by_rank[450:].mean()
    assert np.corrcoef(np.log(planted[free]), np.log(counts + 1))[0, 1] > 0.7
    flat = SyntheticConfig(popularity_skew=0.0)
    assert np.unique(build_world(flat).item_popularity[build_world(flat).free_items]).size == 1


def test_item_vectors_are_near_their_category(demo: Path) -> None:
    table = pq.read_table(demo / "truth" / "items.parquet")
    category = table["category"].to_numpy()
    latent = table["latent"].combine_chunks().flatten().to_numpy().reshape(-1, DEMO.latent_width)
    centre = np.stack([latent[category == c].mean(axis=0) for c in range(DEMO.num_categories)])
    assert ((latent @ centre.T).argmax(axis=1) == category).mean() > 0.95
    events = by_user(demo)
    assert (events["category"] == category[events["item_id"]]).all()


def shares_of_categories(events: dict[str, Numbers], config: SyntheticConfig) -> NDArray[np.float64]:
    """Return the share of each category in each user's events: [users, categories]."""
    counts = np.zeros((config.num_users, config.num_categories))
    np.add.at(counts, (events["user_id"], events["category"]), 1.0)
    shares: NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True)
    return shares


def likeness_of_halves(folder: Path, config: SyntheticConfig) -> float:
    """Return mean cosine between the categories of the first and the second half of each history."""
    generate(config, folder)
    events = by_user(folder)
    first, lengths = np.unique(events["user_id"], return_index=True, return_counts=True)[1:]
    late = (np.arange(events["user_id"].size) - first[events["user_id"]]) * 2 >= lengths[events["user_id"]]
    early_shares, late_shares = (
        shares_of_categories({column: values[part] for column, values in events.items()}, config)
        for part in (~late, late)
    )
    lengths_of_shares = np.linalg.norm(early_shares, axis=1) * np.linalg.norm(late_shares, axis=1)
    return float(((early_shares * late_shares).sum(axis=1) / lengths_of_shares).mean())


def test_tastes_differ_and_drift(tmp_path: Path) -> None:
    only_taste = SyntheticConfig(num_users=500, transition_share=0.0, pattern_share=0.0, taste_drift=0.0)
    drifting = only_taste.model_copy(update={"taste_drift": 0.1})
    indifferent = only_taste.model_copy(update={"taste_strength": 0.0})
    still = likeness_of_halves(tmp_path / "still", only_taste)
    moving = likeness_of_halves(tmp_path / "moving", drifting)
    assert still > 0.7
    assert moving < still - 0.2
    generate(indifferent, tmp_path / "indifferent")
    favourite = {
        name: shares_of_categories(by_user(tmp_path / name), only_taste).max(axis=1).mean()
        for name in ("still", "indifferent")
    }
    assert favourite["still"] > 2 * favourite["indifferent"], "users with a taste keep to fewer categories"


# ---- transitions and patterns


def test_transitions_occur_as_often_as_planted(demo: Path) -> None:
    events, transitions = by_user(demo), read(demo, "truth/transitions.parquet")
    known = np.unique(transitions["item_id"] * DEMO.num_items + transitions["next_item_id"])
    same_user = np.diff(events["user_id"]) == 0
    steps = (events["item_id"][:-1] * DEMO.num_items + events["item_id"][1:])[same_user]
    share = np.isin(steps, known).mean()
    assert DEMO.transition_share - 0.05 < share < DEMO.transition_share + 0.05
    totals = np.bincount(transitions["item_id"], weights=transitions["probability"])
    assert totals == pytest.approx(np.ones(DEMO.num_items))


def test_every_cause_precedes_its_effect_in_the_same_log(demo: Path) -> None:
    events, causes = by_user(demo), read_all(demo, "truth/causes-*.parquet")
    patterns = read(demo, "truth/patterns.parquet")
    effect_of = dict(zip(patterns["cause_item"].tolist(), patterns["effect_item"].tolist(), strict=True))
    assert [effect_of[cause] for cause in causes["cause_item"].tolist()] == causes["effect_item"].tolist()
    assert (causes["cause_time"] < causes["effect_time"]).all()
    # A user's times are distinct, so that (user, time) finds the event.
    span = DEMO.time_span_seconds
    key = events["user_id"] * span + events["time"] - DEMO.start_time
    cause_row = np.searchsorted(key, causes["user_id"] * span + causes["cause_time"] - DEMO.start_time)
    effect_row = np.searchsorted(key, causes["user_id"] * span + causes["effect_time"] - DEMO.start_time)
    assert (events["user_id"][cause_row] == causes["user_id"]).all()
    assert (events["item_id"][cause_row] == causes["cause_item"]).all()
    assert (events["item_id"][effect_row] == causes["effect_item"]).all()
    lags = effect_row - cause_row
    assert set(lags.tolist()) == set(range(DEMO.pattern_min_lag, DEMO.pattern_max_lag + 1))


def test_causes_have_effects_as_often_as_planted(demo: Path) -> None:
    events, causes = by_user(demo), read_all(demo, "truth/causes-*.parquet")
    patterns = read(demo, "truth/patterns.parquet")
    first, lengths = np.unique(events["user_id"], return_index=True, return_counts=True)[1:]
    left = (first + lengths)[events["user_id"]] - 1 - np.arange(events["user_id"].size)
    is_cause = np.isin(events["item_id"], patterns["cause_item"]) & (left >= DEMO.pattern_max_lag)
    has_effect = np.isin(
        events["user_id"] * DEMO.num_items + events["item_id"],
        causes["user_id"] * DEMO.num_items + causes["cause_item"],
    )
    assert has_effect[is_cause].mean() == pytest.approx(DEMO.pattern_probability, abs=0.02)
    assert causes["user_id"].size / events["user_id"].size == pytest.approx(DEMO.pattern_share, rel=0.15)


# ---- what there is to learn


def hit_rate(scores: NDArray[np.float64], target: Numbers) -> float:
    """Return HR@10 over the whole catalogue; seen items have a score of -inf."""
    of_target = scores[np.arange(target.size), target]
    return float(((scores > of_target[:, None]).sum(axis=1) < 10).mean())


def test_knowing_the_structure_beats_popularity_several_times(demo: Path) -> None:
    """Leave one out: popularity, a bigram count learned from the log, and an oracle that reads truth/."""
    events = by_user(demo)
    first, lengths = np.unique(events["user_id"], return_index=True, return_counts=True)[1:]
    last = first + lengths - 1
    item, user, num = events["item_id"], events["user_id"], DEMO.num_items
    train = np.ones(item.size, np.bool_)
    train[last] = False
    seen = np.zeros((DEMO.num_users, num), np.bool_)
    seen[user[train], item[train]] = True

    popularity = np.bincount(item[train], minlength=num) / train.sum()
    steps = np.flatnonzero(train[:-1] & train[1:] & (np.diff(user) == 0))
    bigram = np.zeros((num, num))
    np.add.at(bigram, (item[steps], item[steps + 1]), 1.0)
    bigram /= np.maximum(bigram.sum(axis=1, keepdims=True), 1.0)

    transitions, patterns = read(demo, "truth/transitions.parquet"), read(demo, "truth/patterns.parquet")
    follows = np.zeros((num, num))
    np.add.at(follows, (transitions["item_id"], transitions["next_item_id"]), transitions["probability"])
    effect_of = np.full(num, -1)
    effect_of[patterns["cause_item"]] = patterns["effect_item"]
    oracle = 0.3 * popularity + DEMO.transition_share * follows[item[last - 1]]
    for lag in range(1, DEMO.pattern_max_lag + 1):
        row = last - lag
        expected = np.where(row >= first, effect_of[item[np.maximum(row, 0)]], -1)
        waiting = np.flatnonzero(expected >= 0)
        np.add.at(oracle, (waiting, expected[waiting]), DEMO.pattern_probability / DEMO.pattern_max_lag)

    def masked(scores: NDArray[np.float64]) -> float:
        return hit_rate(np.where(seen, -np.inf, scores), item[last])

    of_popularity = masked(np.broadcast_to(popularity, seen.shape))
    of_bigrams = masked(popularity * 0.1 + bigram[item[last - 1]])
    of_oracle = masked(oracle)
    print(f"HR@10: popularity {of_popularity:.3f}, bigrams {of_bigrams:.3f}, oracle {of_oracle:.3f}")
    assert of_oracle > 5 * of_popularity
    assert of_bigrams > 3 * of_popularity
