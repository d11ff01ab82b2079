"""From a study file to its trials, and what is refused before anything starts."""

import json
from pathlib import Path

import pytest

from cluster.study.config import read_study
from cluster.study.trials import Plan, metric_in, metrics_of, plan_trials, refuse_other_trials, short_names
from trainer.errors import UserError

BASE = """
[logs]
path = "events.parquet"
[model.encoder]
kind = "sasrec"
num_blocks = 3
[train]
epochs = 2
"""


def planned(folder: Path, study: str, overrides: list[str] | None = None) -> Plan:
    (folder / "base.toml").write_text(BASE)
    file = folder / "study.toml"
    file.write_text(f'base = "base.toml"\n[study]\ndir = "{folder / "study"}"\n{study}')
    return plan_trials(read_study(file, overrides))


def refused(folder: Path, study: str) -> str:
    with pytest.raises(UserError) as error:
        planned(folder, study)
    return str(error.value)


def test_a_grid_is_every_combination_under_every_seed(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        """seeds = [5, 7]
        [study.grid]
        "model.encoder.num_blocks" = [1, 2]
        "model.objective.kind" = ["full_softmax", "sampled_softmax"]
        """,
    )
    assert [point.name for point in plan.points] == [
        f"num_blocks {blocks}, {kind}" for blocks in (1, 2) for kind in ("full_softmax", "sampled_softmax")
    ]
    assert len(plan.trials) == 8
    last = plan.trials[-1]
    assert last.name == "num_blocks-2-sampled_softmax-seed7"
    assert last.config.run.seed == 7
    assert last.config.model.encoder.num_blocks == 2
    assert last.config.model.objective.kind == "sampled_softmax"
    assert last.config.train.epochs == 2
    assert last.config.run_dir == tmp_path / "study/trials" / last.name
    assert {trial.config.dataset_dir for trial in plan.trials} == {tmp_path / "study/dataset"}


def test_variants_move_settings_together_and_meet_every_point_of_the_grid(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        """seeds = [1]
        [[study.variants]]
        name = "small"
        settings = { "tables.item.dim" = 16, "model.encoder.num_blocks" = 1 }
        [[study.variants]]
        name = "large"
        settings = { "tables.item.dim" = 64 }
        [study.grid]
        "model.encoder.dropout" = [0.1, 0.5]
        """,
    )
    actual = [
        (t.config.tables["item"].dim, t.config.model.encoder.num_blocks, t.config.model.encoder.dropout)
        for t in plan.trials
    ]
    assert actual == [(16, 1, 0.1), (16, 1, 0.5), (64, 3, 0.1), (64, 3, 0.5)]
    assert [point.label for point in plan.points] == ["small", "small", "large", "large"]


def test_a_table_as_a_value_replaces_the_section(tmp_path: Path) -> None:
    plan = planned(tmp_path, 'seeds = [1]\n[study.grid]\n"model.encoder" = [{ kind = "sasrec", dropout = 0.4 }]')
    encoder = plan.trials[0].config.model.encoder
    assert encoder.dropout == 0.4
    assert encoder.num_blocks == type(encoder)().num_blocks  # not the 3 of the base


def test_sections_beside_the_study_lie_over_the_base(tmp_path: Path) -> None:
    plan = planned(tmp_path, "seeds = [1]\n[train]\nbatch_size = 32")
    assert plan.trials[0].config.train.batch_size == 32
    assert plan.trials[0].config.train.epochs == 2
    assert plan.points[0].name == "base"


RANDOM = """seeds = [1]
kind = "random"
[study.random]
points = {points}
seed = 3
[study.random.ranges]
"train.learning_rate" = {{ log_uniform = [1e-4, 1e-2] }}
"model.encoder.num_blocks" = {{ integers = [1, 3] }}
"model.encoder.dropout" = {{ uniform = [0.1, 0.5] }}
"train.batch_size" = {{ choice = [64, 128] }}
"""


def test_random_points_lie_in_their_ranges_and_more_of_them_keep_the_first(tmp_path: Path) -> None:
    few, many = (planned(tmp_path, RANDOM.format(points=points)) for points in (20, 60))
    settings = [point.settings for point in many.points]
    assert [point.settings for point in few.points] == settings[:20]
    assert all(1e-4 <= s["train.learning_rate"] <= 1e-2 for s in settings)
    assert 10 < sum(s["train.learning_rate"] < 1e-3 for s in settings) < 50  # evenly on a log scale: half are
    assert {s["model.encoder.num_blocks"] for s in settings} == {1, 2, 3}
    assert {s["train.batch_size"] for s in settings} == {64, 128}
    assert many.trials[59].config.model.encoder.dropout == settings[59]["model.encoder.dropout"]


def test_every_wrong_key_is_named_at_once_with_the_nearest_one(tmp_path: Path) -> None:
    message = refused(
        tmp_path,
        """[[study.variants]]
        name = "one"
        settings = { "model.encoder.num_block" = 1 }
        [[study.variants]]
        name = "two"
        settings = { "train.epochs" = -1 }
        [[study.variants]]
        name = "three"
        settings = { "run.seed" = 4 }
        """,
    )
    assert "nothing was started" in message
    assert "one: " in message
    assert "model.encoder.num_block: no such setting; did you mean model.encoder.num_blocks?" in message
    assert "two: " in message
    assert "train.epochs" in message
    assert "three: run.seed: a study sets [run] itself" in message


@pytest.mark.parametrize(
    ("study", "told"),
    [
        ('sedes = [1]', "sedes: no such setting; did you mean seeds?"),
        ("seeds = [1, 1]", "the seeds must differ"),
        ('kind = "random"', "needs [study.random.ranges]"),
        ('metric = "ndcg@7"', "needs 7 among evaluate.ks"),
        ('[study.grid]\n"train.epochs" = []', "an empty list"),
        ('[study.grid]\n"train.epochs" = [1, 2, 1]', "is the same run as epochs 1"),
        ('max_trials = 5\n[study.grid]\n"train.epochs" = [1, 2]', "2 points with 3 seeds are 6 trials"),
        ('[study.grid]\n"train.epochs.all" = [1]', "epochs is a value, not a section"),
        (RANDOM.format(points=1).replace("[1e-4, 1e-2]", "[0.0, 1.0]"), "needs low above 0"),
        (RANDOM.format(points=1).replace("[0.1, 0.5]", "[0.5, 0.1]"), "needs low below high"),
    ],
)  # fmt: skip
def test_what_makes_no_study_is_refused(tmp_path: Path, study: str, told: str) -> None:
    assert told in refused(tmp_path, study)


RANKER = """
[logs]
path = "shown.parquet"
labels = {labels}
history_label = "click"
[split]
kind = "global_time"
validation_time = 6
test_time = 8
"""


@pytest.mark.parametrize(
    ("labels", "given", "metric"),
    [
        (["click"], "", "auc"),
        (["click", "buy"], "", "auc/click"),
        (["click", "buy"], 'metric = "logloss/buy"', "logloss/buy"),
        (["click"], 'metric = "ne"', "ne"),
        (["click"], 'metric = "gauc/click"', "gauc/click"),
    ],
)
def test_rankers_are_studied_by_their_own_metrics(tmp_path: Path, labels: list[str], given: str, metric: str) -> None:
    plan = planned(tmp_path, f'seeds = [1]\n{given}\n{RANKER.format(labels=json.dumps(labels))}[model]\nkind = "din"')
    assert plan.study.metric == metric
    assert metric_in(plan.trials[0].config, metric) in metrics_of(plan.trials[0].config)


def test_a_model_of_one_label_is_compared_with_one_of_several_by_the_label_they_share(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        """seeds = [1]
        metric = "auc/click"
        [[study.variants]]
        name = "clicks"
        settings = { "model.labels" = { click = {} } }
        [[study.variants]]
        name = "both"
        settings = { "model.labels" = { click = {}, buy = {} } }
        """
        + RANKER.format(labels='["click", "buy"]'),
    )
    assert [metric_in(trial.config, plan.study.metric) for trial in plan.trials] == ["auc", "auc/click"]


@pytest.mark.parametrize(
    ("study", "told"),
    [
        ('metric = "auc"', "study.metric = 'auc' is no metric of base-seed1; its model has hr@"),
        ('metric = "ndcg@10"\n' + RANKER.format(labels='["click"]'), "its model has auc, pr_auc, gauc, logloss, ne"),
        ('metric = "auc"\n' + RANKER.format(labels='["click", "buy"]'), "auc/click, gauc/click"),
        ('metric = "auc/like"\n' + RANKER.format(labels='["click", "buy"]'), "'auc/like' is no metric of base-seed1"),
        ('metric = "calibration"\n' + RANKER.format(labels='["click"]'), "study.metric"),
    ],
)
def test_a_metric_that_a_trial_does_not_have_is_refused_with_those_it_has(
    tmp_path: Path, study: str, told: str
) -> None:
    assert told.removeprefix("study.") in refused(tmp_path, f"seeds = [1]\n{study}")


def test_a_config_without_a_study_is_told_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(BASE)
    with pytest.raises(UserError, match="has no \\[study\\]; a single config is run by `shoal run"):
        read_study(tmp_path / "base.toml")


def test_a_dataset_that_is_there_is_used(tmp_path: Path) -> None:
    plan = planned(tmp_path, 'seeds = [1, 2]\n[run]\ndataset = "elsewhere"')
    assert {trial.config.dataset_dir for trial in plan.trials} == {Path("elsewhere")}


def test_points_whose_logs_differ_have_a_dataset_each(tmp_path: Path) -> None:
    plan = planned(tmp_path, 'seeds = [1, 2]\n[study.grid]\n"split.min_events" = [3, 5]')
    folders = [trial.config.dataset_dir for trial in plan.trials]
    assert folders[0] == folders[1] == tmp_path / "study/dataset"
    assert folders[2] == folders[3] != folders[0]
    assert len(plan.datasets()) == 2


def test_a_folder_with_a_trial_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    grid = 'seeds = [1]\n[study.grid]\n"model.encoder.num_blocks" = [1]'
    plan = planned(tmp_path, grid)
    (trial,) = plan.trials
    trial.config.run_dir.mkdir(parents=True)
    (trial.config.run_dir / "config.json").write_text(json.dumps(trial.config.model_dump(mode="json")))
    refuse_other_trials(plan)
    changed = planned(tmp_path, grid, ["train.epochs=9", "train.log_every_steps=3"])
    with pytest.raises(UserError) as error:
        refuse_other_trials(changed)
    assert trial.name in str(error.value)
    assert "train.epochs: was 2, is 9" in str(error.value)
    assert "log_every_steps" not in str(error.value)


def test_short_names_tell_keys_apart() -> None:
    assert short_names(["model.encoder.kind", "model.objective.kind", "train.epochs"]) == {
        "model.encoder.kind": "encoder.kind",
        "model.objective.kind": "objective.kind",
        "train.epochs": "epochs",
    }
