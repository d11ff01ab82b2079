"""Comparisons of stored evaluations: what is paired, what is refused, groups of seeds, slices, impressions."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.evaluations import ranks_to_metrics, write_ranking_run, write_run
from trainer.comparison.comparison import Comparison, compare
from trainer.comparison.sides import changed_settings
from trainer.comparison.verdicts import notes, slice_verdict
from trainer.errors import UserError
from trainer.evaluation.ranking.judged import Judged, areas_of, auc_of, count_scores, sums_of
from trainer.evaluation.ranking.metrics import metrics_of

OTHER = {"train": {"learning_rate": 0.2}}


def ranks_of(seed: int, number: int = 240, shift: float = 0.0) -> np.ndarray:
    ease = np.random.default_rng(0).normal(0.0, 1.5, number)
    own = np.random.default_rng(seed).normal(-shift, 1.0, number)
    return np.maximum(1, np.exp(np.clip(2.5 + ease + own, 0.0, 6.0)).astype(np.int64))


def compared(*inputs, **options) -> Comparison:
    return compare(inputs, **({"num_resamples": 200} | options))


def test_two_runs_are_compared_user_by_user(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", ranks_of(1))
    b = write_run(tmp_path / "b", ranks_of(2, shift=1.0), settings=OTHER)
    comparison = compared(a, b)
    (pair,) = comparison.pairs
    assert (pair.reference.name, pair.other.name, comparison.num_users) == ("a", "b", 240)
    by_name = {one.metric: one for one in pair.differences}
    assert [*by_name] == ["hr@10", "ndcg@10", "mrr"]
    assert comparison.repeated == {"recall@10": "hr@10"}
    expected = ranks_to_metrics(ranks_of(2, shift=1.0))["mrr"] - ranks_to_metrics(ranks_of(1))["mrr"]
    assert by_name["mrr"].difference == pytest.approx(expected.mean())
    assert {one.outcome for one in pair.differences} == {"better"}
    (coverage,) = comparison.unpaired
    assert (coverage.metric, coverage.values) == ("coverage@10", (0.5, 0.5))
    assert "users cannot be paired" in coverage.reason
    assert changed_settings(comparison.sides) == [("train.learning_rate", [0.1, 0.2])]
    assert comparison.sides[0].runs[0].cost.seconds == 90.0


def test_p_values_are_corrected_over_pairs_and_metrics(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, ranks_of(k), settings={"x": {"y": k}}) for k, name in enumerate("abc")]
    comparison = compared(*runs)
    assert [(pair.reference.name, pair.other.name) for pair in comparison.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert comparison.num_tests == 9
    smallest = min((one for pair in comparison.pairs for one in pair.differences), key=lambda one: one.p)
    assert smallest.p_corrected == pytest.approx(min(1.0, 9 * smallest.p))
    fewer = compared(*runs[:2], metrics=["mrr"])
    assert [one.metric for one in fewer.pairs[0].differences] == ["mrr"]
    with pytest.raises(UserError, match=r"--metric auc: was not evaluated; there are hr@10, "):
        compared(*runs, metrics=["auc"])


def test_users_are_matched_by_their_id_and_not_by_their_row(tmp_path: Path) -> None:
    ranks, order = ranks_of(1), np.random.default_rng(0).permutation(240)
    a = write_run(tmp_path / "a", ranks)
    b = write_run(
        tmp_path / "b", ranks[order], users=order.tolist(), targets=[[int(k) % 500] for k in order], settings=OTHER
    )
    assert [one.p for one in compared(a, b).pairs[0].differences] == [1.0, 1.0, 1.0]
    assert all(one.users and one.users.equal == 240 for one in compared(a, b).pairs[0].differences)


def test_other_protocols_are_refused_by_name(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", ranks_of(1))
    b = write_run(tmp_path / "b", ranks_of(2), protocol={"seen_items": "ranked", "split": {"kind": "global_time"}})
    with pytest.raises(UserError, match="the protocols differ") as refused:
        compared(a, b)
    assert "seen_items: masked in a; ranked in b" in str(refused.value)
    assert "split.kind: leave_one_out in a; global_time in b" in str(refused.value)
    assert "catalogue" not in str(refused.value)
    c = write_run(tmp_path / "c", ranks_of(2), protocol={"candidates": "from a file"})
    with pytest.raises(UserError, match="candidates: not stated in a; from a file in c"):
        compared(a, c)
    d = write_run(tmp_path / "d", ranks_of(2), split="validation")
    with pytest.raises(UserError, match="evaluated split: test in a; validation in d"):
        compared(a, d / "evaluation" / "validation")


def test_what_belongs_to_a_model_may_differ(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", ranks_of(1), protocol={"base_dataset": "11bb", "statement": "Old words."})
    b = write_run(tmp_path / "b", ranks_of(2), protocol={"base_dataset": "22cc"}, settings=OTHER)
    assert "The runs differ in base_dataset: 11bb in a; 22cc in b." in notes(compared(a, b))
    assert not any("statement" in note for note in notes(compared(a, b)))


def test_a_metric_of_a_later_version_is_named(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / n, ranks_of(k), settings={"x": {"y": k}}, columns={"delight@10": np.arange(240.0)})
        for k, n in enumerate("ab")
    ]
    for run in runs:
        file = run / "evaluation" / "test" / "metrics.json"
        values = json.loads(file.read_text())
        values["metrics"]["delight@10"] = 1.0
        file.write_text(json.dumps(values))
    comparison = compared(*runs)
    assert comparison.unpaired[-1].reason == "this version of shoal does not know the metric"
    assert "delight@10" not in {part.column for part in comparison.pairs[0].slices}


def test_other_users_are_refused_unless_only_common_ones_are_asked_for(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", ranks_of(1))
    b = write_run(
        tmp_path / "b", ranks_of(2)[40:], users=range(40, 240), targets=[[k] for k in range(40, 240)], settings=OTHER
    )
    with pytest.raises(
        UserError, match=r"the users differ: 240 in a, 200 in b, of which 200 are in all; --common-users"
    ):
        compared(a, b)
    comparison = compared(a, b, common_users=True)
    assert (comparison.num_users, comparison.num_left_out) == (200, 40)
    assert comparison.pairs[0].differences[2].reference == pytest.approx((1.0 / ranks_of(1)[40:]).mean())
    assert any("40 users" in note for note in notes(comparison))
    c = write_run(tmp_path / "c", ranks_of(1), users=[f"u{k}" for k in range(240)])
    with pytest.raises(UserError, match="no user is in all evaluations"):
        compared(a, c, common_users=True)


def test_other_targets_are_refused(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", ranks_of(1))
    targets = [[7] if k < 3 else [k] for k in range(240)]
    b = write_run(tmp_path / "b", ranks_of(2), targets=targets)
    with pytest.raises(UserError, match="the targets of 3 of 240 users differ between a and b"):
        compared(a, b)
    unknown = write_run(
        tmp_path / "c", ranks_of(2), targets=[[None] if k < 3 else [k] for k in range(240)], settings=OTHER
    )
    assert compared(a, unknown).num_users == 240
    longer = write_run(tmp_path / "d", ranks_of(2), targets=[[k, 3] if k < 2 else [k] for k in range(240)])
    with pytest.raises(UserError, match="the targets of 2 of 240 users"):
        compared(a, longer)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", ranks_of(1))
    with pytest.raises(UserError, match="name at least two runs"):
        compared(a)
    with pytest.raises(UserError, match="is the same evaluation as another input"):
        compared(a, a / "evaluation" / "test")
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        compared(a, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no evaluation of the validation split: it has evaluation/test; choose one"):
        compared(a, a, split="validation")
    b = write_run(tmp_path / "b", ranks_of(2))
    (b / "evaluation" / "test" / "per_user.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is no complete evaluation"):
        compared(a, b)
    twice = write_run(tmp_path / "c", ranks_of(2), users=[*range(239), 0])
    with pytest.raises(UserError, match="lists a user twice"):
        compared(a, twice)


def test_a_checkpoint_is_found_by_its_name(tmp_path: Path) -> None:
    runs = []
    for k, name in enumerate("ab"):
        run = write_run(tmp_path / name, ranks_of(k), settings={"x": {"y": k}})
        best = run / "evaluation" / "test"
        named = run / "evaluation" / "step_000000007" / "test"
        named.parent.mkdir()
        best.rename(named)
        runs.append(run)
    assert compared(*runs, checkpoint="step_000000007").sides[0].name == "a"
    with pytest.raises(UserError, match=r"no evaluation of the test split: it has evaluation/step_000000007/test"):
        compared(*runs)


def test_runs_that_differ_only_in_their_seed_are_grouped(tmp_path: Path) -> None:
    of_a = [write_run(tmp_path / f"a-seed{k}", ranks_of(k), seed=k) for k in (1, 2, 3)]
    of_b = [write_run(tmp_path / f"b-seed{k}", ranks_of(k + 5, shift=1.0), seed=k, settings=OTHER) for k in (1, 2)]
    comparison = compared(*of_a, *of_b)
    assert [side.title for side in comparison.sides] == ["a (3 seeds)", "b (2 seeds)"]
    mrr = comparison.pairs[0].differences[2]
    expected = np.mean([(1.0 / ranks_of(k)).mean() for k in (1, 2, 3)])
    assert mrr.reference == pytest.approx(expected)
    assert mrr.over_seeds is not None
    seeds = compared(*of_a)  # only seeds: then these are compared
    assert [side.title for side in seeds.sides] == ["a-seed1", "a-seed2", "a-seed3"]
    assert any("differ only in run.seed" in note for note in notes(seeds))
    again = write_run(tmp_path / "a-again", ranks_of(9), seed=1)  # the same seed is no other draw
    assert [side.title for side in compared(of_a[0], again, of_b[0]).sides] == ["a-seed1", "a-again", "b-seed1"]


def test_names_can_be_chosen_and_make_groups(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"r{k}", ranks_of(k), seed=k, settings=OTHER if k > 2 else None) for k in (1, 2, 3, 4)]
    first, second, third, fourth = runs
    comparison = compared(f"old={first}", f"old={second}", ("new", third), ("new", fourth))
    assert [side.title for side in comparison.sides] == ["old (2 seeds)", "new (2 seeds)"]
    apart = compared(f"x={first}", f"y={second}", third)
    assert [side.title for side in apart.sides] == ["x", "y", "r3"]
    with pytest.raises(
        UserError, match=r"both called new, but they differ in more than run\.seed: train\.learning_rate"
    ):
        compared(f"new={first}", f"new={third}", second)
    with pytest.raises(UserError, match="all runs are called x"):
        compared(f"x={first}", f"x={second}")


def test_seeds_of_a_chosen_name_all_count(tmp_path: Path) -> None:
    of_a = [write_run(tmp_path / f"a-seed{k}", ranks_of(k), seed=k) for k in (1, 2, 3)]
    of_b = [write_run(tmp_path / f"b-seed{k}", ranks_of(k + 5, shift=1.0), seed=k, settings=OTHER) for k in (1, 2)]
    by_settings = compared(*of_a, *of_b)
    chosen = compared(*(f"A={run}" for run in of_a), *(f"B={run}" for run in of_b))
    assert [side.title for side in chosen.sides] == ["A (3 seeds)", "B (2 seeds)"]
    assert [run.name for side in chosen.sides for run in side.runs] == [run.name for run in (*of_a, *of_b)]
    assert chosen.pairs[0].differences == by_settings.pairs[0].differences
    assert chosen.pairs[0].slices == by_settings.pairs[0].slices
    for side, number in zip(chosen.sides, ("reference", "value"), strict=True):
        means = [run.metrics["ndcg@10"] for run in side.evaluations]
        assert len(set(means)) == len(means)
        found = next(one for one in chosen.pairs[0].differences if one.metric == "ndcg@10")
        assert getattr(found, number) == pytest.approx(np.mean(means))


def test_slices_by_every_column_of_users(tmp_path: Path) -> None:
    country = [("de", "fr")[k % 2] for k in range(240)]
    runs = [
        write_run(tmp_path / n, ranks_of(k), settings={"x": {"y": k}}, columns={"country": country})
        for k, n in enumerate("ab")
    ]
    comparison = compared(*runs)
    slices = comparison.pairs[0].slices
    assert {part.column for part in slices} == {"history_length", "country", "popularity_place"}
    of_country = [part for part in slices if part.column == "country" and part.of.metric == "mrr"]
    assert [(part.value, part.num_users) for part in of_country] == [("de", 120), ("fr", 120)]
    expected = (1.0 / ranks_of(1) - 1.0 / ranks_of(0))[::2].mean()
    assert of_country[0].of.difference == pytest.approx(expected)
    assert of_country[0].of.interval_by == "score"
    lengths = [part for part in slices if part.column == "history_length" and part.of.metric == "mrr"]
    assert sum(part.num_users for part in lengths) == 240
    assert len(lengths) == 4


def test_a_slice_with_another_verdict_is_named(tmp_path: Path) -> None:
    half = np.arange(240) < 120
    a = ranks_of(1)
    b = np.where(half, ranks_of(1, shift=2.5), ranks_of(1, shift=-2.5))  # better for one half, worse for the other
    columns = {"half": np.where(half, "first", "second").tolist()}
    runs = [write_run(tmp_path / n, r, settings={"x": {"y": n}}, columns=columns) for n, r in (("a", a), ("b", b))]
    (pair,) = compared(*runs, metrics=["mrr"]).pairs
    assert pair.differences[0].outcome == "better"  # the first half gains more than the second one loses
    assert slice_verdict(pair).startswith(
        "On some slices the verdict is another one: b is in mrr worse for half: second (-0."
    )
    assert "first" not in slice_verdict(pair)
    same = [write_run(tmp_path / n, a, settings={"x": {"y": n}}, columns=columns) for n in ("c", "d")]
    assert slice_verdict(compared(*same).pairs[0]) == ""


def impressions_of(seed: int, quality: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return users, logits and labels; the last are the same for all seeds."""
    truth = np.random.default_rng(0)
    user = np.sort(truth.integers(0, 60, 900))
    user = np.unique(user, return_inverse=True)[1]
    chance = truth.normal(0.0, 1.0, 900)
    positive = truth.random(900) < 1.0 / (1.0 + np.exp(-chance))
    return user, quality * chance + np.random.default_rng(seed).normal(0.0, 0.5, 900), positive


def test_ranking_models_are_compared_by_their_users_shares(tmp_path: Path) -> None:
    user, good, positive = impressions_of(1, 1.0)
    _, poor, _ = impressions_of(2, 0.1)
    a = write_ranking_run(tmp_path / "a", user, poor, positive)
    b = write_ranking_run(tmp_path / "b", user, good, positive, settings=OTHER, history=80)
    comparison = compared(a, b)
    by_name = {one.metric: one for one in comparison.pairs[0].differences}
    assert [*by_name] == [f"{name}/click" for name in ("auc", "pr_auc", "gauc", "logloss", "ne", "calibration")]
    values = [
        metrics_of(sums_of(j), areas_of(count_scores(j)))
        for j in (Judged(user, s, positive, np.ones(900)) for s in (poor, good))
    ]
    for name, one in by_name.items():
        short = name.partition("/")[0]
        assert (one.reference, one.value) == pytest.approx((values[0][short], values[1][short]), abs=1e-6)
    assert by_name["auc/click"].outcome == by_name["logloss/click"].outcome == "better"
    assert by_name["auc/click"].users is None  # a user alone has no share in pairs of other users
    assert by_name["logloss/click"].users is not None
    assert {part.column for part in comparison.pairs[0].slices} == {"history_length", "item_impressions"}
    (part,) = [
        p
        for p in comparison.pairs[0].slices
        if (p.column, p.of.metric) == ("history_length", "auc/click") and p.value == "0 to 2"
    ]
    inside = np.arange(900) % 9 <= 2
    j = Judged(user, poor, positive, np.ones(900)).take(inside)
    assert part.of.reference == pytest.approx(auc_of(count_scores(j)), abs=1e-6)


def test_common_users_of_ranking_models_are_measured_again(tmp_path: Path) -> None:
    user, good, positive = impressions_of(1, 1.0)
    a = write_ranking_run(tmp_path / "a", user, good, positive)
    few = user < 40
    b = write_ranking_run(tmp_path / "b", user[few], impressions_of(2, 1.0)[1][few], positive[few], settings=OTHER)
    comparison = compared(a, b, common_users=True)
    j = Judged(user[few], good[few], positive[few], np.ones(int(few.sum())))
    by_name = {one.metric: one for one in comparison.pairs[0].differences}
    assert by_name["auc/click"].reference == pytest.approx(auc_of(count_scores(j)), abs=1e-6)
    assert by_name["logloss/click"].reference == pytest.approx(
        metrics_of(sums_of(j), areas_of(count_scores(j)))["logloss"], abs=1e-6
    )
    (a / "evaluation" / "test" / "per_impression.parquet").unlink()
    with pytest.raises(UserError, match=r"has no per_impression\.parquet"):
        compared(a, b, common_users=True)


def test_another_task_is_refused_by_that_alone(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", ranks_of(1))
    b = write_ranking_run(tmp_path / "b", *impressions_of(1, 1.0))
    with pytest.raises(UserError, match=r"differ, .*:\n  task: next_item in a; ranking in b\nevaluate"):
        compared(a, b)


def test_other_impressions_are_refused_and_missing_ones_leave_no_slices(tmp_path: Path) -> None:
    user, good, positive = impressions_of(1, 1.0)
    a = write_ranking_run(tmp_path / "a", user, good, positive)
    b = write_ranking_run(tmp_path / "b", user, -good, positive, settings=OTHER)
    c = write_ranking_run(tmp_path / "c", user, good, ~positive, settings=OTHER)
    with pytest.raises(UserError, match=r"the impressions of [0-9]+ of 60 users differ between a and c"):
        compared(a, c)
    moved = positive.copy()
    first, second = np.flatnonzero(user == 5)[:2]
    moved[first], moved[second] = True, False
    before = positive.copy()
    before[first], before[second] = False, True
    d, e = (write_ranking_run(tmp_path / n, user, good, p) for n, p in (("d", before), ("e", moved)))
    with pytest.raises(UserError, match="differ in times, items or labels"):
        compared(d, e)
    (b / "evaluation" / "test" / "per_impression.parquet").unlink()
    comparison = compared(a, b)
    assert not comparison.has_slices
    assert any("no slices" in note for note in notes(comparison))


def test_a_metric_that_one_run_cannot_define_is_named(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / n, ranks_of(k), settings={"x": {"y": k}}) for k, n in enumerate("ab"))
    file = b / "evaluation" / "test" / "metrics.json"
    values = json.loads(file.read_text())
    del values["metrics"]["coverage@10"]
    file.write_text(json.dumps(values))
    (coverage,) = compared(a, b).unpaired
    assert coverage.values == (0.5, None)
