"""What the points of a study cost by the cost model (models/costs.py), on the dataset that they train on. Nothing is run."""

from dataclasses import dataclass

import numpy as np

from cluster.config.run_config import Config
from cluster.study.config import AssumedConfig
from cluster.study.trials import Plan
from models.config import NextItemConfig
from models.costs import Histories, Projected, Workload, costs_of
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.inputs import features_of
from trainer.errors import UserError
from trainer.placement.loads import ITEM_TABLE, declared_rows, table_rows


@dataclass(frozen=True)
class Costing:
    """Per input event, on average over the training histories; parts: training FLOPs by part, which add up to the whole.

    matmul: of the training FLOPs, those of matrix products, which are exact; table_parameters: without tables of unknown size.
    assumed: whether the dataset was not there, so that its histories and items were assumed.
    """

    forward_flops_per_event: float
    training_flops_per_event: float
    matmul_flops_per_event: float
    activation_bytes_per_event: float
    moved_bytes_per_event: float
    dense_parameters: int
    table_parameters: int
    parts: dict[str, float]
    events_per_history: float
    assumed: bool


@dataclass(frozen=True)
class _Facts:
    """Of a dataset. train_ends: of every user, the number of training events; projected: as Workload has it."""

    train_ends: np.ndarray
    num_items: int
    table_rows: dict[str, int]
    manifest: Manifest | None


def costs_of_points(plan: Plan) -> list[Costing]:
    """By point. Without a dataset, of what study.assumed says."""
    found: dict[object, _Facts] = {}
    costs = []
    for number in range(len(plan.points)):
        config = plan.of_point(number)[0].config
        key = (config.dataset_dir, str(config.model.inputs), str(config.ids_of_tables))
        if key not in found:
            found[key] = _facts_of(config, plan.study.assumed)
        costs.append(costing_of(config, found[key]))
    return costs


def _facts_of(config: Config, assumed: AssumedConfig) -> _Facts:
    try:
        manifest = read_manifest(config.dataset_dir)
    except UserError:
        longest = assumed.history or config.model.max_history
        rows = declared_rows(config.tables, config.logs, config.model.inputs) | {ITEM_TABLE: assumed.items + 1}
        return _Facts(np.asarray([longest + 1]), assumed.items, {n: r for n, r in rows.items() if r is not None}, None)
    from trainer.data.stream.row_groups import RowGroupReader  # not where a study is only refused

    ends = RowGroupReader(config.dataset_dir, manifest).train_ends()
    return _Facts(ends, manifest.counts.num_items, table_rows(config.tables, manifest, config.model.inputs), manifest)


def _model_of(config: Config) -> NextItemConfig:
    """Raises UserError for what there is no cost model of."""
    if isinstance(config.model, NextItemConfig):
        return config.model
    raise UserError(
        'study: model.task = "ranking" cannot be studied, because costs are known of next-item models only; train its runs one '
        "by one and compare their metrics.json"
    )


def costing_of(config: Config, facts: _Facts) -> Costing:
    """Of one config on one dataset."""
    histories = training_histories(facts.train_ends, config)
    train = config.train
    events = (
        float(train.batch_tokens)
        if train.batch_tokens is not None
        else train.batch_size * _mean_with_empty(facts, config)
    )
    width = config.tables[ITEM_TABLE].dim
    workload = Workload(histories, events, facts.num_items, projected=_projected(config, facts.manifest))
    costs = costs_of(_model_of(config), width, workload)
    return Costing(
        forward_flops_per_event=costs.forward,
        training_flops_per_event=costs.training,
        matmul_flops_per_event=costs.total.matmul,
        activation_bytes_per_event=costs.activation_bytes,
        moved_bytes_per_event=costs.moved_bytes,
        dense_parameters=costs.dense_parameters,
        table_parameters=sum(rows * config.tables[name].dim for name, rows in facts.table_rows.items()),
        parts={name: work.training for name, work in costs.parts.items()},
        events_per_history=histories.mean,
        assumed=facts.manifest is None,
    )


def training_histories(train_ends: np.ndarray, config: Config) -> Histories:
    """Input events of every training example: the last event of a history is a target only, unless what is learned is masked."""
    longest = config.model.max_history
    inputs = np.maximum(train_ends.astype(np.int64) - (not _model_of(config).masks_items), 0)
    if config.train.long_histories == "recent":
        return Histories.of(np.minimum(inputs, longest))
    whole = np.full(int((inputs // longest).sum()), longest)
    return Histories.of(np.concatenate((whole, inputs % longest)))


def _mean_with_empty(facts: _Facts, config: Config) -> float:
    """Input events of an example, those without any counted too: they fill places of a batch."""
    histories = training_histories(facts.train_ends, config)
    empty = int((facts.train_ends < (1 if _model_of(config).masks_items else 2)).sum())
    return histories.num_events / (float(histories.counts.sum()) + empty)


def _projected(config: Config, manifest: Manifest | None) -> tuple[Projected, ...]:
    """The features that are not as wide as the model; none while the dataset does not say which there are."""
    if manifest is None:
        return ()
    width, used = config.tables[ITEM_TABLE].dim, features_of(manifest, config.model.inputs)
    found = []
    for features in (used.items, used.events, used.users):
        for feature in features:
            of_table = feature.table is not None
            own = config.tables[feature.table].dim if feature.table is not None else feature.dim or 1
            if not of_table or own != width:
                found.append(Projected(feature.owner, own, of_table))
    return tuple(found)
