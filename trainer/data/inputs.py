"""Selection of the dataset features that a model receives besides item ids (models/features/config.py). Imports no torch."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from models.config import ModelConfig
from models.features.config import InputsConfig
from sharding.config import TableConfig
from trainer.data.dataset.manifest import USED_KINDS, Feature, Manifest, used_features
from trainer.data.logs.config import (
    FeatureSpec,
    LogsConfig,
    Owner,
    TimestampFeatureConfig,
    VectorFeatureConfig,
    feature_specs,
)
from trainer.errors import UserError

_TICKS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6}
# Integer times from 1973 on, counted from 1970, have different sizes in different units.
_SMALLEST = (("seconds", 10**8), ("milliseconds", 10**11), ("microseconds", 10**14))
_LARGEST = 10**17


@dataclass(frozen=True)
class UsedFeatures:
    """The features that a model uses, by owner."""

    # Features of items.
    items: tuple[Feature, ...]
    # Features of events.
    events: tuple[Feature, ...]
    # Features of users.
    users: tuple[Feature, ...]
    # For ranking: features of impressions, stored as features of events.
    candidates: tuple[Feature, ...] = ()


def features_of(manifest: Manifest, inputs: InputsConfig) -> UsedFeatures:
    """Return the features of a dataset that the settings select. Raises UserError for a name that does not exist."""

    def chosen(owner: str, names: list[str] | None, prefix: str) -> tuple[Feature, ...]:
        features = {f.name: f for f in manifest.features if f.owner == owner}
        usable = {name: feature.kind in USED_KINDS for name, feature in features.items()}
        return tuple(features[name] for name in choose(names, usable, f"model.inputs.{prefix}_features"))

    return UsedFeatures(
        used_features(manifest),
        chosen("event", inputs.event_features, "event"),
        chosen("user", inputs.user_features, "user"),
        chosen("event", inputs.candidate_features, "candidate") if manifest.has_impressions else (),
    )


def declared_features(logs: LogsConfig, inputs: InputsConfig) -> UsedFeatures:
    """Return the selected features as the logs declare them, before a dataset exists; without rows and other counts."""

    def chosen(owner: Owner, names: list[str] | None, prefix: str) -> tuple[Feature, ...]:
        specs = {spec.name: spec for spec in feature_specs(logs) if spec.owner == owner}
        usable = {name: not isinstance(spec.config, TimestampFeatureConfig) for name, spec in specs.items()}
        return tuple(_declared(specs[name]) for name in choose(names, usable, f"model.inputs.{prefix}_features"))

    return UsedFeatures(
        chosen("item", None, "item"),
        chosen("event", inputs.event_features, "event"),
        chosen("user", inputs.user_features, "user"),
        chosen("event", inputs.candidate_features, "candidate") if logs.task == "ranking" else (),
    )


def _declared(spec: FeatureSpec) -> Feature:
    dim = spec.config.dim if isinstance(spec.config, VectorFeatureConfig) else None
    return Feature(spec.owner, spec.name, spec.config.kind, spec.table, dim=dim)


def used_specs(logs: LogsConfig, inputs: InputsConfig) -> tuple[FeatureSpec, ...]:
    """Return the declared features that a model with these inputs uses. Raises UserError for an undeclared name."""
    specs = feature_specs(logs)

    def usable(owner: Owner) -> dict[str, bool]:
        return {s.name: not isinstance(s.config, TimestampFeatureConfig) for s in specs if s.owner == owner}

    chosen: dict[Owner, tuple[str, ...]] = {
        "item": choose(None, usable("item"), ""),
        "event": choose(inputs.event_features, usable("event"), "model.inputs.event_features"),
        "user": choose(inputs.user_features, usable("user"), "model.inputs.user_features"),
    }
    if logs.task == "ranking":
        chosen["event"] += choose(inputs.candidate_features, usable("event"), "model.inputs.candidate_features")
    return tuple(spec for spec in specs if spec.name in chosen[spec.owner])


def check_bags(logs: LogsConfig, model: ModelConfig, tables: Mapping[str, TableConfig]) -> None:
    """Check that tables with `lookup = "bags"` are used by features alone. Raises UserError if the model needs single rows."""
    if tables["item"].lookup == "bags":
        raise UserError(
            'tables.item.lookup = "bags": histories need the row of every item, and bags are for tables that only features use; '
            'give each feature with table = "item" its own table'
        )
    searched = model.searched_feature
    for spec in feature_specs(logs):
        if spec.table is None or tables[spec.table].lookup != "bags":
            continue
        if spec.owner == "item" and spec.name == searched:
            raise UserError(
                f'tables.{spec.table}.lookup = "bags": model.interest.search.feature = {searched!r} compares single values, which '
                'bags add up; set lookup = "rows"'
            )


def choose(names: list[str] | None, usable: Mapping[str, bool], setting: str) -> tuple[str, ...]:
    """Return the named features, or all usable ones.

    Args:
        names: names from the setting; None selects all usable features.
        usable: for every declared feature, whether it can be used.
        setting: the name of the setting, for messages.

    Raises:
        UserError: for a name that is undeclared, unusable or repeated.
    """
    if names is None:
        return tuple(name for name, can_be in usable.items() if can_be)
    for name in names:
        if name not in usable:
            near = difflib.get_close_matches(name, usable, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(usable) or 'none'}"
            raise UserError(f"{setting}: no feature {name!r} is declared; {hint}")
        if not usable[name]:
            raise UserError(
                f"{setting}: {name!r} is a moment (kind timestamp), which the encoder cannot use; leave it out, or declare it as "
                "a number"
            )
    if len(set(names)) < len(names):
        raise UserError(f"{setting}: a feature is named twice in {names}")
    return tuple(names)


def clock_ticks(manifest: Manifest, model: ModelConfig) -> int | None:
    """Return the timestamp ticks per second, or None if times are not Unix times and `time_unit` is unset."""
    try:
        return ticks_per_second(manifest, model)
    except UserError:
        return None


def ticks_per_second(manifest: Manifest, model: ModelConfig) -> int:
    """Return the timestamp ticks per second. Raises UserError if times are not Unix times and `time_unit` is unset."""
    if model.inputs.time_unit is not None:
        return _TICKS[model.inputs.time_unit]
    span = manifest.source.get("time", {})
    if span.get("kind") == "timestamp":
        return _TICKS["microseconds"]
    first, last = span.get("first"), span.get("last")
    if first is not None:
        bounds = [smallest for _, smallest in _SMALLEST[1:]] + [_LARGEST]
        for (unit, smallest), beyond in zip(_SMALLEST, bounds, strict=True):
            if smallest <= first and last < beyond:
                return _TICKS[unit]
    who = " and ".join(f"model.{setting}" for setting in model.time_settings)
    raise UserError(
        f"{who}: needs Unix times, and the times of the logs ({first} to {last}) look like positions in a history, or count "
        'from another moment than 1970. Set logs.time to a column of real times, or set model.inputs.time_unit = "seconds" (or '
        "another unit) if they are real times, or use no times: model.inputs.time = [], model.inputs.request_time = false, and "
        'model.encoder.attention.bias = "position" or "none" (for ranking model.interest.attention.bias as well)'
    )
