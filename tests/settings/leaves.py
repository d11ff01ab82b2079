"""The names of all settings, found by walking the models of a config.

A leaf is a setting that holds a value, such as `train.batch_size`, or a table that may be left out, such as `train.days`. Names of
tables, features and labels are `*`. A setting that belongs to one kind of a union has the kind behind the union's name:
`model.objective[gbce].calibration`.
"""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the name of every leaf below a model of settings. A leaf that several kinds of a union share appears once per kind."""
    yield from dict.fromkeys(_leaves(model, prefix, ""))


def leaf_of(settings: BaseModel, key: str, prefix: str = "") -> str:
    """Return the leaf that a config key, such as `tables.item.dim`, is in checked settings.

    Raises KeyError if the settings have no such key.
    """
    place, parts, tag = prefix, key.split("."), ""
    current: Any = settings
    while parts:
        name = parts.pop(0)
        if name not in type(current).model_fields:
            raise KeyError(f"{key}: there is no setting {name!r} in {type(current).__name__}")
        field, value = type(current).model_fields[name], getattr(current, name)
        models = _models_in(field.annotation)
        if not models or not parts:
            return f"{place}{tag}.{name}".removeprefix(".")
        place = f"{place}.{name}"
        if isinstance(value, dict | list):
            inner = parts.pop(0)
            value = value[int(inner)] if isinstance(value, list) else value[inner]
            place += ".*"
        tag = _tag(type(value)) if len(models) > 1 else ""
        current = value
    raise KeyError(f"{key}: is a table of settings, not one setting")


def _leaves(model: type[BaseModel], prefix: str, tag: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        models = _models_in(field.annotation)
        if not models or _may_be_left_out(field):
            yield f"{prefix}{tag}.{name}".removeprefix(".")
        several = ".*" if get_origin(field.annotation) in (dict, list) else ""
        for inner in models:
            # Tables are named without the kind that contains them: several kinds share them.
            yield from _leaves(inner, f"{prefix}.{name}{several}", _tag(inner) if len(models) > 1 else "")


def _may_be_left_out(field: FieldInfo) -> bool:
    return types.NoneType in get_args(field.annotation)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) not in (Annotated, Union, types.UnionType, dict, list):
        return []
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _tag(model: type[BaseModel]) -> str:
    name = "task" if "task" in model.model_fields else "kind"
    return f"[{get_args(model.model_fields[name].annotation)[0]}]"
