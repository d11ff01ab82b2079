"""Derives defaults that depend on other settings: tables, `kind` tags, the task, the early-stopping metric."""

from typing import Any

from pydantic import ValidationError

from trainer.data.logs.config import LogsConfig, feature_specs


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Return the plain values of a config, not checked yet, with derived defaults. Values of a wrong type stay for the check."""
    if not isinstance(values.get("tables", {}), dict):
        return values
    values = {**values, "tables": _with_tables(values)}
    split = values.get("split")
    logs = values.get("logs")
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
    """Return the default metric of rankers, auc of the first label; None for other models.

    Args:
        values: The plain values of a config, not checked yet.
    """
    logs = values.get("logs")
    model = values.get("model", {})
    labels = logs.get("labels") if isinstance(logs, dict) else None
    if not isinstance(labels, list) or not labels or not isinstance(model, dict):
        return None
    learned = model.get("labels") or labels
    if not isinstance(learned, dict | list):
        return None
    return "auc" if len(learned) == 1 else f"auc/{next(iter(learned))}"


def _with_kinds(model: dict[str, Any]) -> dict[str, Any]:
    """Return [model] with the default kinds of its objective and negatives."""
    objective = model.get("objective")
    if not isinstance(objective, dict):
        return model
    objective = {"kind": "full_softmax", **objective}
    negatives = objective.get("negatives")
    if isinstance(negatives, dict):
        objective["negatives"] = {"kind": "uniform", **negatives}
    return {**model, "objective": objective}


def _watched(train: Any, metric: str) -> Any:
    """Return [train] with this default metric of early stopping."""
    stopping = train.get("early_stopping", {}) if isinstance(train, dict) else None
    if not isinstance(stopping, dict):
        return train
    return {**train, "early_stopping": {"metric": metric, **stopping}}


def _with_tables(values: dict[str, Any]) -> dict[str, Any]:
    """Return [tables] with a table for items and for each feature with ids, whether the config names it or not."""
    tables = {"item": {}, **values.get("tables", {})}
    try:
        specs = feature_specs(LogsConfig.model_validate(values.get("logs")))
    except ValidationError:
        return tables  # the check of the whole config gives a better message
    # By default rows of features have the width of the item vectors that they are added to.
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
