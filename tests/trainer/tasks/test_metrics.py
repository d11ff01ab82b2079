"""Everything that handles names of metrics reads the tuples of the tasks."""

import re
import subprocess
import sys

import pytest

from cluster.study.config import StudyConfig
from trainer.evaluation.confidence import NOT_NEGATIVE, SHARE, mean_interval
from trainer.evaluation.metric import cutoff_of
from trainer.evaluation.ranking.intervals import share_interval
from trainer.tasks.metrics import (
    METRICS,
    headline_names,
    interval_of,
    larger_is_better,
    metric_of,
    range_of,
    selection_names,
    selection_pattern,
    unusable_reason,
)


@pytest.mark.parametrize("task", METRICS)
def test_names_explanations_and_patterns_are_those_of_one_metric_each(task):
    metrics = METRICS[task]
    assert len({metric.name for metric in metrics}) == len(metrics)
    for metric in metrics:
        name = metric.value_name(10)
        assert [other for other in metrics if other.matches(name)] == [metric]
        assert metric.explanation.endswith(".")
        assert metric_of(name) is metric
        assert not metric.matches(f"x{name}")
        assert not metric.matches(f"{name}x")


def test_what_is_known_of_a_metric_by_its_name():
    assert larger_is_better("recall@5")
    assert not larger_is_better("ne/click")
    assert range_of("map@20") == SHARE
    assert range_of("logloss") == NOT_NEGATIVE
    assert (cutoff_of("map@20"), cutoff_of("mrr"), cutoff_of("auc/a@b")) == (20, None, None)
    with pytest.raises(KeyError, match="hr10"):
        metric_of("hr10")


def test_a_setting_may_name_metrics_that_can_select():
    pattern = selection_pattern("next_item")
    for name in ("hr@10", "ndcg@1", "recall@20", "precision@3", "map@5", "debiased_ndcg@10", "mrr"):
        assert re.search(pattern, name), name
        assert StudyConfig(dir="s", metric=name).metric == name
    for name in ("coverage@10", "novelty@10", "ild@10", "arp@10", "hr", "hr@0", "auc", "mrr@10", "xmrr"):
        assert not re.search(pattern, name), name
    assert StudyConfig(dir="s", metric="ne/click").metric == "ne/click"
    assert re.search(selection_pattern("ranking"), "auc/click")
    assert not re.search(selection_pattern("ranking"), "calibration")


def test_metrics_that_can_select_are_listed_by_the_names_of_evaluation():
    of_cutoffs = [
        f"{name}@{k}" for name in ("hr", "ndcg", "recall", "precision", "map", "debiased_ndcg") for k in (1, 5)
    ]
    assert selection_names("next_item", [5, 1], ()) == [*of_cutoffs, "mrr"]
    assert selection_names("ranking", [5], ("click",)) == ["auc", "pr_auc", "gauc", "logloss", "ne"]
    assert interval_of("auc/click") is share_interval
    assert interval_of("map@5") is mean_interval
    assert interval_of("debiased_ndcg@5") is interval_of("ild@5") is share_interval


@pytest.mark.parametrize(
    ("name", "task", "labels", "reason"),
    [
        ("recall@10", "next_item", (), None),
        ("mrr", "next_item", (), None),
        ("map@7", "next_item", (), r"it needs 7 among evaluate\.ks = \[5, 10\]"),
        ("coverage@10", "next_item", (), "has hr@K, ndcg@K, recall@K, precision@K, map@K, debiased_ndcg@K and mrr"),
        ("auc", "next_item", (), "a model of the next item has"),
        ("auc", "ranking", ("click",), None),
        ("ne/buy", "ranking", ("click", "buy"), None),
        (
            "auc",
            "ranking",
            ("click", "buy"),
            "a model of these labels has auc/click, pr_auc/click, gauc/click, logloss/click",
        ),
        ("calibration", "ranking", ("click",), "a model of these labels has auc, pr_auc, gauc, logloss, ne$"),
    ],
)
def test_why_a_metric_cannot_select_checkpoints(name, task, labels, reason):
    answer = unusable_reason(name, task, [5, 10], labels)
    assert (answer is None) == (reason is None)
    assert reason is None or re.search(reason, answer)


@pytest.mark.parametrize(
    ("ks", "shown"), [((1, 5, 10, 20), 10), ((1, 5), 5), ((20, 50), 20)], ids=["ten", "below ten", "above ten"]
)
def test_summaries_show_the_cut_off_ten_or_the_nearest(ks, shown):
    names = [f"{name}@{k}" for k in ks for name in ("hr", "ndcg", "recall", "coverage")]
    assert headline_names([*names, "mrr"]) == [f"hr@{shown}", f"ndcg@{shown}", "mrr"]


def test_summaries_of_ranking_show_every_label():
    names = [
        f"{name}/{label}" for label in ("click", "buy") for name in ("auc", "gauc", "logloss", "ne", "calibration")
    ]
    assert headline_names(names) == ["auc/click", "gauc/click", "ne/click", "auc/buy", "gauc/buy", "ne/buy"]


def test_names_and_patterns_are_known_without_torch():
    program = "import sys, trainer.tasks.metrics, trainer.tasks.outputs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
