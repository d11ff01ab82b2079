"""`shoal prune`: a pruned run has the metric that was measured without its parts, costs less, and is a run like any other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from cluster.config.run_config import Config, job_of, load_config
from cluster.driver.explain_stage import run_explain_stage
from cluster.driver.progress import View, plain_console
from cluster.driver.prune_stage import PruneOptions, run_prune_stage
from tests.contracts.test_inference import CANDIDATE, TIMES, TWO_LABELS
from tests.contracts.test_recommend import ITEM_FEATURES, PoolWorkers
from tests.settings.lab import Lab
from tests.support.html_page import Page, assert_loads_nothing
from tests.support.rank_pool import RankPool
from tests.support.trained_runs import lab_in, run_of
from trainer.checkpoint import folder as checkpoints
from trainer.errors import UserError
from trainer.explanation.command.request import Options
from trainer.inference.trained_model import TrainedModel, load_trained_model
from trainer.pruning.results import PruningResults, Row

HEADS = {
    "model.encoder.num_blocks": 2,
    "model.encoder.attention.num_heads": 4,
    "train.early_stopping": {"metric": "mrr"},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab_in(tmp_path_factory.mktemp("prune"))


@pytest.fixture(scope="module")
def events(lab: Lab, rank_pool: RankPool) -> Config:
    settings = {**TIMES, **ITEM_FEATURES, **HEADS, "model.encoder.kind": "hstu", "train.ema_decay": 0.5}
    return run_of(lab, rank_pool, "events", settings)[0]


def pruned(
    config: Config, pool: RankPool, out: Path, number: int = 1, **options: Any
) -> tuple[PruningResults, Path, PoolWorkers]:
    workers: Any = PoolWorkers(pool, number)
    with View(plain_console(quiet=True)) as view:
        results, page = run_prune_stage(config, PruneOptions(**options), None, out, workers, view)
    return results, page, workers


def run_in(row: Row) -> Config:
    return load_config(str(Path(row.run) / "config.json"), None)


def model_of(config: Config) -> TrainedModel:
    return load_trained_model(job_of(config), checkpoints.to_evaluate(config.run_dir / "checkpoints", print))


def evaluated(config: Config, pool: RankPool, number: int = 1) -> dict[str, float]:
    """Return the validation metrics of a run."""
    from cluster.driver.evaluate_stage import run_evaluate_stages

    workers: Any = PoolWorkers(pool, number)
    with View(plain_console(quiet=True)) as view:
        results, _ = run_evaluate_stages(config, ["validation"], None, workers, view)["validation"]
    return results.metrics


@pytest.fixture(scope="module")
def done(events: Config, rank_pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> tuple[PruningResults, Path]:
    results, page, _ = pruned(events, rank_pool, tmp_path_factory.mktemp("out"), heads=(1, 3), blocks=(1,), steps=2)
    return results, page


def test_a_pruned_run_has_the_metric_that_was_measured_without_its_parts(
    rank_pool: RankPool, done: tuple[PruningResults, Path]
) -> None:
    results, _ = done
    by_kind = {
        kind: min(
            (one for one in results.measured.contributions if one.unit.kind == kind), key=lambda o: o.contribution
        )
        for kind in ("heads", "block")
    }
    rows = {row.name: row for row in results.rows}
    assert evaluated(run_in(rows["heads-1"]), rank_pool)["mrr"] == pytest.approx(by_kind["heads"].value, abs=1e-9)
    assert evaluated(run_in(rows["blocks-1"]), rank_pool, 2)["mrr"] == pytest.approx(by_kind["block"].value, abs=1e-9)
    values = [one.value for one in results.measured.contributions]
    assert len(values) == 10
    assert len({round(value, 9) for value in values}) > 3, "parts differ in what they contribute"
    assert all(one.contribution == results.measured.whole - one.value for one in results.measured.contributions)


def test_heads_and_blocks_are_removed_from_the_weights_and_the_cost(
    events: Config, done: tuple[PruningResults, Path]
) -> None:
    results, _ = done
    whole, one_head, three_heads, block, *tuned = results.rows
    assert [sum(row.heads_by_block) for row in (whole, one_head, three_heads)] == [8, 7, 5]
    assert sorted(block.heads_by_block) == [0, 4]
    assert [row.steps for row in tuned] == [2, 2, 2, 2]
    flops = [row.cost.forward_flops for row in (whole, one_head, three_heads)]
    assert flops == sorted(flops, reverse=True)
    assert block.cost.forward_flops < 0.6 * whole.cost.forward_flops
    for row in (whole, one_head, block):
        model = model_of(run_in(row)).model
        dense = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("tables."))
        assert dense == row.cost.dense_parameters
    with_tables = [model_of(run_in(row)) for row in (whole, three_heads)]
    for name, weight in with_tables[0].tables.weights.items():
        np.testing.assert_array_equal(weight, with_tables[1].tables.weights[name])


def test_a_pruned_run_is_a_run_like_any_other(
    rank_pool: RankPool, done: tuple[PruningResults, Path], tmp_path: Path
) -> None:
    config = run_in(done[0].rows[2])
    assert config.model.encoder.heads_by_block is not None
    recommended = shoal.load(config.run_dir).recommend(k=3)
    exported = shoal.export(config.run_dir, tmp_path / "export", index=False, users=20, quiet=True)
    assert exported.parity["largest_relative_difference"] < 1e-5
    assert recommended.num_rows
    workers: Any = PoolWorkers(rank_pool, 1)
    with View(plain_console(quiet=True)) as view:
        explained, _ = run_explain_stage(config, Options(sample=4, measure=False), None, tmp_path / "e", workers, view)
    assert explained.num_users == 4


def test_training_continues_with_the_moments_of_the_kept_weights(done: tuple[PruningResults, Path]) -> None:
    results, _ = done
    rows = {row.name: row for row in results.rows}
    pruned_only, tuned = (run_in(rows[name]) for name in ("heads-3", "heads-3-2-steps"))
    start = checkpoints.newest(pruned_only.run_dir / "checkpoints")[0]
    end = checkpoints.newest(tuned.run_dir / "checkpoints")[0]
    assert start is not None
    assert end is not None
    assert end.manifest.step == start.manifest.step + 2
    assert end.manifest.metrics["skipped_steps"] == 0
    assert start.manifest.metrics["best"]["value"] is None, (
        "the best value of the whole model is not that of the pruned one"
    )
    assert end.manifest.metrics["best"]["step"] == end.manifest.step
    lines = [json.loads(line) for line in (tuned.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"][-1] == end.manifest.step


def test_it_is_done_once_and_the_page_is_whole(
    rank_pool: RankPool, events: Config, done: tuple[PruningResults, Path]
) -> None:
    results, page = done
    again, _, workers = pruned(events, rank_pool, page.parent, heads=(1, 3), blocks=(1,), steps=2)
    assert workers.jobs == 0
    assert again.rows == results.rows
    text = page.read_text(encoding="utf-8")
    assert_loads_nothing(text)
    shown = Page(text)
    assert not shown.open
    assert "without 3 heads, 2 steps later" in shown.text
    assert "<svg" in text
    values = json.loads((page.parent / "pruning.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in values["rows"]][:4] == ["unpruned", "heads-1", "heads-3", "blocks-1"]


def test_rankers_with_an_encoder_are_pruned(lab: Lab, rank_pool: RankPool, tmp_path: Path) -> None:
    settings = {**CANDIDATE, **TWO_LABELS, "model.kind": "bst", "model.encoder.num_blocks": 2}
    config = run_of(lab, rank_pool, "impressions", settings)[0]
    results, _, _ = pruned(config, rank_pool, tmp_path / "out", 2, heads=(3,), blocks=(1,), metric="logloss/click")
    least = min((o for o in results.measured.contributions if o.unit.kind == "block"), key=lambda o: o.contribution)
    measured = evaluated(run_in(results.rows[2]), rank_pool)["logloss/click"]
    assert measured == pytest.approx(least.value, abs=1e-6)
    assert least.contribution == least.value - results.measured.whole
    page = (tmp_path / "out" / "pruning.html").read_text(encoding="utf-8")
    assert "as pruned" in page
    assert "steps later" not in page
    assert sum(results.rows[1].heads_by_block) == sum(results.rows[0].heads_by_block) - 3


def test_options_that_do_not_fit_are_refused(
    lab: Lab, events: Config, rank_pool: RankPool, done: tuple[PruningResults, Path], tmp_path: Path
) -> None:
    for options, message in (
        ({"heads": (), "blocks": ()}, "--heads and --blocks"),
        ({"heads": (0,), "blocks": ()}, "must be at least 1"),
        ({"heads": (7,), "blocks": ()}, "--heads 7: at most 6 can be pruned"),
        ({"heads": (), "blocks": (3,)}, "--blocks 3: the model has only 2"),
        ({"heads": (1,), "blocks": (), "metric": "auc"}, "--metric auc"),
    ):
        with pytest.raises(UserError, match=message):
            pruned(events, rank_pool, tmp_path / "out", **options)
    with pytest.raises(UserError, match="holds"):  # the folder of other pruned models
        pruned(run_in(done[0].rows[1]), rank_pool, done[1].parent, heads=(1,), blocks=())
