"""What a config leaves out and another setting decides: tables, kinds, the task, what is watched. Imports no torch."""

from typing import Any

from pydantic import ValidationError

from trainer.data.logs.config import LogsConfig, feature_specs


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a config, not checked yet, with what follows from others. What is no table is left for the check."""
    if not isinstance(values.get("tables", {}), dict):
        return values
    values = {**values, "tables": _with_tables(values)}
    split, logs = values.get("split"), values.get("logs")
    if isinstance(split, dict):
        values["split"] = {"kind": "leave_one_out", **split}
    train = values.get("train")
    if isinstance(train, dict) and train.get("days") is not None:
        values["train"] = {"early_stopping": None, **train}  # there is no earlier day to go back to
    labels = logs.get("labels") if isinstance(logs, dict) else None
    ranks = isinstance(labels, list) and bool(labels)
    model = values.get("model", {})
    if isinstance(model, dict):
        values["model"] = _with_kinds({"task": "ranking" if ranks else "next_item", **model})
        metric = metric_of_rankers(values)
        if metric is not None:
            values["train"] = _watched(values.get("train", {}), metric)
    return values


def metric_of_rankers(values: dict[str, Any]) -> str | None:
    """Return the metric that rankers are judged by unless told otherwise, auc of the first label; None for other models.

    values: plain ones of a config, not checked yet.
    """
    logs, model = values.get("logs"), values.get("model", {})
    labels = logs.get("labels") if isinstance(logs, dict) else None
    if not isinstance(labels, list) or not labels or not isinstance(model, dict):
        return None
    learned = model.get("labels") or labels
    if not isinstance(learned, dict | list):
        return None
    return "auc" if len(learned) == 1 else f"auc/{next(iter(learned))}"


def _with_kinds(model: dict[str, Any]) -> dict[str, Any]:
    objective = model.get("objective")
    if not isinstance(objective, dict):
        return model
    objective = {"kind": "full_softmax", **objective}
    negatives = objective.get("negatives")
    if isinstance(negatives, dict):
        objective["negatives"] = {"kind": "uniform", **negatives}
    return {**model, "objective": objective}


def _watched(train: Any, metric: str) -> Any:
    """Early stopping looks at this metric, unless told otherwise."""
    stopping = train.get("early_stopping", {}) if isinstance(train, dict) else None
    if not isinstance(stopping, dict):
        return train
    return {**train, "early_stopping": {"metric": metric, **stopping}}


def _with_tables(values: dict[str, Any]) -> dict[str, Any]:
    """A table for items and for every feature that has ids, whether the config names it or not."""
    tables = {"item": {}, **values.get("tables", {})}
    try:
        specs = feature_specs(LogsConfig.model_validate(values.get("logs")))
    except ValidationError:
        return tables  # the whole is not valid either, and says so better
    # Unless told otherwise, rows of features are as wide as the vectors that they are added to.
    item = tables["item"]
    small = {k: v for k, v in item.items() if k == "dim"} if isinstance(item, dict) else {}
    for name in dict.fromkeys(spec.table for spec in specs):
        given = tables.get(name, {})
        if name and name != "item" and isinstance(given, dict):
            tables[name] = {**small, **given}
    for name, table in tables.items():
        ids = table.get("ids") if isinstance(table, dict) else None
        if isinstance(ids, dict) and "kind" not in ids:
            tables[name] = {**table, "ids": {"kind": "vocabulary", **ids}}
    return tables
