"""A real study of a few seconds' training: trials side by side on two CPUs, one that fails, and the same command again."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cluster.driver.progress import View
from cluster.study import command
from cluster.study.command import Answer
from trainer.data.synthetic.impression_world import ImpressionConfig
from trainer.data.synthetic.impressions import generate_impressions
from trainer.data.synthetic.log import generate
from trainer.data.synthetic.world import SyntheticConfig
from trainer.errors import UserError


@pytest.fixture
def study(tmp_path: Path) -> Path:
    logs = tmp_path / "events"
    generate(SyntheticConfig(num_users=80, num_items=150, mean_events_per_user=12.0, users_per_file=80), logs)
    path = tmp_path / "study.toml"
    path.write_text(
        f"""
        [study]
        dir = "{tmp_path / "study"}"
        seeds = [1]
        [study.grid]
        "model.encoder.num_blocks" = [1, 2, 3]
        [logs]
        path = "{logs}/events-*.parquet"
        [model]
        max_history = 12
        [tables.item]
        dim = 8
        [train]
        epochs = 2
        batch_size = 16
        [cluster]
        num_workers = 1
        """
    )
    return path


def run(study: Path, *overrides: str) -> tuple[Answer, str]:
    said = io.StringIO()
    with View(Console(file=said, width=200)) as view:
        return command.run(command.plan(str(study), overrides), view), said.getvalue()


def test_a_study_with_a_failing_trial_and_the_same_again(ray_session: None, study: Path) -> None:
    folder = study.parent / "study"
    (folder / "trials").mkdir(parents=True)
    (folder / "trials/num_blocks-3-seed1").write_text("in the way")  # where that trial's run folder would be

    answer, said = run(study)
    assert sorted(answer.ran) == [f"num_blocks-{number}-seed1" for number in (1, 2, 3)]
    assert list(answer.summary.failed) == ["num_blocks-3-seed1"]
    assert "is a file; choose another run.dir" in answer.summary.failed["num_blocks-3-seed1"]
    assert "num_blocks-3-seed1: failed" in said
    assert [row.name for row in answer.summary.rows] == ["num_blocks 1", "num_blocks 2"]
    for row in answer.summary.rows:
        trial = folder / "trials" / f"{row.name.replace(' ', '-')}-seed1"
        metrics = json.loads((trial / "evaluation/validation/metrics.json").read_text())["metrics"]
        assert row.validation.mean == metrics["ndcg@10"]
        assert (
            row.metrics["test"]["mrr"]
            == json.loads((trial / "evaluation/test/metrics.json").read_text())["metrics"]["mrr"]
        )
        assert json.loads((trial / "config.json").read_text())["model"]["encoder"]["num_blocks"] == int(row.name[-1])
        assert row.events_per_second is not None
        assert row.peak_bytes is not None
        assert row.train_seconds > 0
    smaller, larger = (row.costs for row in answer.summary.rows)
    assert smaller.dense_parameters < larger.dense_parameters
    assert not smaller.assumed

    # As if the command had been killed between the last stage of a trial and its record.
    trial, other = (folder / "trials" / f"num_blocks-{number}-seed1" for number in (1, 2))
    record = json.loads((trial / "trial.json").read_text())
    assert record["attempts"] == 1
    (trial / "trial.json").write_text(json.dumps({**record, "status": "running"}))
    again, said = run(study, 'study.grid={"model.encoder.num_blocks"=[1, 2]}', "study.keep_checkpoints=false")
    assert again.ran == [trial.name]
    assert again.kept == [other.name]
    assert "1 of 2 trials were done before" in said
    assert "train: done before" in (trial / "trial.log").read_text()
    assert not (trial / "checkpoints").exists()
    assert (other / "checkpoints").exists()
    first, second = again.summary.rows
    assert first.resumed
    assert replace(first, resumed=False) == answer.summary.rows[0]
    assert second == answer.summary.rows[1]
    assert list(json.loads((folder / "results.json").read_text())["points"][0]["failed"]) == []

    with pytest.raises(UserError, match="was run with other settings"):
        run(study, "train.batch_size=8")


def test_a_study_of_rankers(ray_session: None, tmp_path: Path) -> None:
    """Judged by log loss, of which less is better; figures are of impressions."""
    generate_impressions(
        ImpressionConfig(num_users=60, num_items=60, mean_impressions_per_user=40.0), tmp_path / "logs"
    )
    path = tmp_path / "study.toml"
    path.write_text(
        f"""
        [study]
        dir = "{tmp_path / "study"}"
        seeds = [1]
        metric = "logloss"
        [study.grid]
        "model.kind" = ["logistic", "bst"]
        [logs]
        path = "{tmp_path}/logs/impressions-*.parquet"
        labels = ["click"]
        outcomes = ["conversion", "click_probability", "conversion_probability"]
        history_label = "click"
        [split]
        kind = "global_time"
        validation_time = 1702080000
        test_time = 1702339200
        [model]
        max_history = 6
        [tables.item]
        dim = 8
        [train]
        epochs = 1
        batch_size = 16
        [cluster]
        num_workers = 1
        """
    )
    answer, said = run(path)
    assert answer.summary.failed == {}, said
    rows = answer.summary.rows
    assert [row.name for row in rows] == ["logistic", "bst"]
    assert next(row for row in rows if row.rank == 1).validation.mean == min(row.validation.mean for row in rows)
    for row in rows:
        folder = tmp_path / "study/trials" / f"{row.name}-seed1/evaluation/validation"
        results = json.loads((folder / "metrics.json").read_text())
        assert row.validation.mean == results["metrics"]["logloss"]
        assert row.validation.over_users == pytest.approx(results["ci95"]["logloss"])
        assert row.impressions_per_second is not None
        assert row.costs.unit == "impression"
        assert not row.costs.assumed
    page = answer.page.read_text()
    assert "training FLOPs/impression" in page
    assert "/event" not in page
