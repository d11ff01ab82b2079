"""What points cost is counted on their dataset: of a ranker for each impression, compared with torch's counter on a real step."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console

from cluster.config.run_config import Config
from cluster.study import command
from cluster.study.config import read_study
from cluster.study.costing import Costing, costs_of_points
from cluster.study.trials import Plan, plan_trials
from models.features.catalogue import Catalogue
from models.ranking.config import RankingConfig, learned_labels
from models.ranking.interest import interest_of
from models.ranking.model import RankingModel
from models.ranking.reach import reach_of
from models.tables import TableSpec
from tests.models.test_costs import products_in
from tests.support.datasets import tiny_ranking_dataset
from tests.support.studies import plan_of
from trainer.data.dataset.manifest import read_manifest
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.impressions import ImpressionStream, impression_examples
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.errors import UserError

NUM_USERS, NUM_EVENTS, NUM_SHOWN, NUM_ITEMS = 4, 9, 5, 12
HEADS = 'encoder = { dropout = 0.0, attention = { num_heads = 2, bias = "position" } }'
MODELS = {
    "logistic": 'kind = "logistic"',
    "din": 'kind = "din"',
    "bst": f'kind = "bst"\n{HEADS}',
    "hstu, encoded with candidates": f'kind = "hstu"\n{HEADS}\nexperts = {{ kind = "mmoe", hidden = [6], num_experts = 3 }}',
    "crossed": 'kind = "pooled"\ncrossing = { kind = "dcn_v2", rank = 3 }',
}


def write_dataset(folder: Path, num_events: int = NUM_EVENTS, first_shown: int = 40) -> None:
    """Users who all have as many events, and then impressions that nobody clicks: so no batch is padded."""
    users = [f"u{number}" for number in range(NUM_USERS)]
    shown = [(user, 1 + k, first_shown + k, 0.0) for user in users for k in range(NUM_SHOWN)]
    past = [(user, 1 + (3 * k) % NUM_ITEMS, k) for user in users for k in range(num_events)]
    past += [("z", item, 0) for item in range(1, NUM_ITEMS + 1)]  # all items are in the catalogue
    names = ("user", "item", "time", "label.click")
    table = pa.table(dict(zip(names, zip(*shown, strict=True), strict=True)))
    table = table.set_column(3, "label.click", table.column("label.click").cast(pa.float32()))
    tiny_ranking_dataset(folder, table, pa.table(dict(zip(names[:3], zip(*past, strict=True), strict=True))))


def ranker_plan(folder: Path, model: str) -> Plan:
    """Return a study of one point on the dataset in the folder, if there is one."""
    (folder / "study.toml").write_text(
        f"""
        [study]
        dir = "{folder / "study"}"
        seeds = [1]
        [run]
        dataset = "{folder / "dataset"}"
        [logs]
        path = "unused"
        labels = ["click"]
        history_label = "click"
        [split]
        kind = "global_time"
        validation_time = 60
        test_time = 80
        [tables.item]
        dim = 8
        [train]
        batch_size = 16
        [model]
        {model}
        """
    )
    return plan_trials(read_study(folder / "study.toml"))


def cost_of(plan: Plan) -> Costing:
    (cost,) = costs_of_points(plan)
    return cost


def first_step_of(config: Config) -> tuple[RankingModel, Any]:
    """Return the model of a config, and the only batch of an epoch."""
    model, folder = config.model, config.dataset_dir
    assert isinstance(model, RankingConfig)
    manifest, reach = read_manifest(folder), reach_of(model)
    reader = RowGroupReader(folder, manifest, ColumnSelection(impressions=True))
    batches = GlobalBatches(impression_examples(reader, NUM_SHOWN, reach.attended), 16, None, 1, 0, 1)
    catalogue = Catalogue(manifest.num_item_rows, manifest.num_item_rows)
    (step,) = ImpressionStream(reader, batches, reach, catalogue).steps(Position(0, 0), 1)
    width = config.tables["item"].dim
    interest = interest_of(width, model.max_history, model.encoder, model.interest)
    specs, labels = [TableSpec("item", manifest.num_item_rows, width)], learned_labels(model, ["click"])
    ranker = RankingModel(model, labels, specs, torch.device("cpu"), interest)
    ranker.initialize(torch.Generator().manual_seed(1))
    for parameter in ranker.parameters():
        torch.nn.init.normal_(parameter)
    return ranker, step.batch


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_history", [4, 20])
def test_the_products_of_a_ranker_are_those_of_a_step_on_its_dataset(
    tmp_path: Path, name: str, max_history: int
) -> None:
    """Where histories are shorter than what a candidate attends to, and where they are longer."""
    write_dataset(tmp_path / "dataset")
    plan = ranker_plan(tmp_path, f"max_history = {max_history}\n{MODELS[name]}")
    ranker, batch = first_step_of(plan.trials[0].config)
    assert batch.num_targets == NUM_USERS * NUM_SHOWN

    def step() -> None:
        rows = {table: found.detach().requires_grad_() for table, found in ranker.look_up(batch.items).items()}
        ranker.loss(rows, batch).backward()

    cost = cost_of(plan)
    assert cost.matmul_flops * NUM_USERS * NUM_SHOWN == pytest.approx(products_in(step), rel=1e-12)
    assert cost.dense_parameters == sum(
        parameter.numel() for key, parameter in ranker.named_parameters() if not key.startswith("tables.")
    )
    assert cost.table_parameters == (NUM_ITEMS + 1) * 8
    assert not cost.assumed


def test_figures_of_a_ranker_are_of_impressions_and_say_so(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset")
    plan = ranker_plan(tmp_path, "max_history = 20")
    cost = cost_of(plan)
    assert cost.unit == "impression"
    assert cost.events_per_history == NUM_EVENTS
    assert sum(cost.parts.values()) == pytest.approx(cost.training_flops)
    assert "training_flops_per_impression" in cost.values()
    assert not any(name.endswith("_per_event") for name in cost.values())
    printed = io.StringIO()
    command.print_dry_run(plan, command.dry_run(plan), Console(file=printed, width=80))
    heading = printed.getvalue().partition("base")[0].split()
    assert heading.count("impression") == 2, "a heading that is too long wraps between words"
    assert "event" not in heading


def test_figures_of_the_next_item_keep_their_names(tmp_path: Path) -> None:
    cost = cost_of(plan_of(tmp_path, "[run]"))
    assert cost.unit == "event"
    assert [name for name in cost.values() if "_per_" in name] == [
        f"{name}_per_event"
        for name in ("forward_flops", "training_flops", "matmul_flops", "activation_bytes", "moved_bytes")
    ] + ["events_per_history"]


def test_without_a_dataset_a_ranker_costs_what_is_assumed_and_its_declared_features(tmp_path: Path) -> None:
    features = """
        [logs.features]
        slot = { kind = "categorical" }
        [logs.items]
        path = "items"
        [logs.items.features]
        price = { kind = "numeric" }
        content = { kind = "vector", dim = 5 }
    """
    assumed = f"[study.assumed]\nitems = {NUM_ITEMS}\nhistory = {NUM_EVENTS}\nimpressions = {NUM_SHOWN}\n"
    plain = cost_of(ranker_plan(tmp_path, f"max_history = 4\n{assumed}"))
    assert plain.assumed
    told = cost_of(ranker_plan(tmp_path, f"max_history = 4\n{assumed}{features}"))
    # The first layer is as wide as the fields: 8 of the slot, 1 of the price, 5 of the content.
    assert told.dense_parameters - plain.dense_parameters > 128 * (8 + 1 + 5)
    write_dataset(tmp_path / "dataset")
    counted = cost_of(ranker_plan(tmp_path, "max_history = 4"))
    assert not counted.assumed
    # The assumed batch of one user is not that of four, which decides what a look-up of a row costs alone.
    assert plain.matmul_flops == pytest.approx(counted.matmul_flops)


def test_users_without_any_event_cost_something(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", num_events=0)
    cost = cost_of(ranker_plan(tmp_path, f"max_history = 4\n{MODELS['bst']}"))
    assert cost.events_per_history == 0
    assert np.isfinite(cost.training_flops)
    assert cost.training_flops > 0


def test_a_dataset_without_training_impressions_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", first_shown=70)
    with pytest.raises(UserError, match="has no training impressions"):
        cost_of(ranker_plan(tmp_path, "max_history = 4"))


def test_a_metric_that_the_validation_split_cannot_have_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """Nobody clicks anything in this dataset."""
    write_dataset(tmp_path / "dataset")
    config = ranker_plan(tmp_path, "max_history = 4").trials[0].config
    manifest = read_manifest(tmp_path / "dataset")
    for metric in ("auc", "gauc", "ne", "ne/click"):
        with pytest.raises(UserError, match=r'is not defined there.*study.metric = "logloss"'):
            command.refuse_without_positives(config, metric, manifest)
    command.refuse_without_positives(config, "logloss", manifest)
    command.refuse_without_positives(plan_of(tmp_path, "[run]").trials[0].config, "ndcg@10", manifest)
