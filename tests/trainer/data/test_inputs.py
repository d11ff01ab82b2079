"""Which features a model uses, and whether the times of a dataset are those of a clock."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.config.run_config import check_config
from models.config import NextItemConfig
from models.features.config import InputsConfig
from tests.support.datasets import manifest_of_items
from trainer.data.dataset.manifest import Feature, Manifest
from trainer.data.inputs import features_of, ticks_per_second
from trainer.errors import UserError

FEATURES = (
    Feature("event", "device", "categorical", table="device", num_rows=4),
    Feature("event", "seen", "timestamp"),
    Feature("event", "price", "numeric"),
    Feature("item", "brand", "categorical", table="brand", num_rows=4),
    Feature("user", "age", "bucketized", table="age", num_rows=4),
    Feature("user", "interests", "categorical_list", table="brand", num_rows=4),
)
MANIFEST = replace(manifest_of_items(3), features=FEATURES)


def names(**inputs: Any) -> tuple[list[str], list[str]]:
    used = features_of(MANIFEST, InputsConfig(**inputs))
    assert [feature.name for feature in used.items] == ["brand"]
    return [feature.name for feature in used.events], [feature.name for feature in used.users]


def test_all_features_are_used_unless_some_are_named() -> None:
    assert names() == (["device", "price"], ["age", "interests"])
    assert names(event_features=["price"], user_features=[]) == (["price"], [])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"event_features": ["devise"]}, r"model\.inputs\.event_features.*'devise'.*did you mean 'device'\?"),
        ({"user_features": ["zzz"]}, r"model\.inputs\.user_features.*'zzz'.*there are age, interests"),
        ({"event_features": ["age"]}, r"model\.inputs\.event_features.*'age'"),
        ({"event_features": ["seen"]}, r"'seen' is a moment"),
        ({"event_features": ["price", "price"]}, r"twice"),
    ],
)
def test_a_name_that_cannot_be_is_refused(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        features_of(MANIFEST, InputsConfig(**inputs))
    declared = {
        "logs": {
            "path": "events",
            "features": {
                "device": {"kind": "categorical"},
                "seen": {"kind": "timestamp"},
                "price": {"kind": "numeric"},
            },
            "users": {
                "path": "users",
                "features": {"age": {"kind": "numeric"}, "interests": {"kind": "categorical"}},
            },
        },
        "model": {"inputs": inputs},
    }
    with pytest.raises(UserError, match=message):
        check_config(declared, "test")


def with_times(first: int | None, last: int | None, kind: str = "integer") -> Manifest:
    return replace(MANIFEST, source={"time": {"kind": kind, "first": first, "last": last}})


@pytest.mark.parametrize(
    ("first", "last", "kind", "ticks"),
    [
        (965_779_200, 1_405_987_200, "integer", 1),
        (1_650_556_800_000, 1_651_334_400_000, "integer", 1_000),
        (1_650_556_800_000_000, 1_651_334_400_000_000, "integer", 1_000_000),
        (-5, 17, "timestamp", 1_000_000),
    ],
)
def test_the_unit_of_times_is_derived_from_their_size(first: int, last: int, kind: str, ticks: int) -> None:
    assert ticks_per_second(with_times(first, last, kind), NextItemConfig(inputs=InputsConfig(time=["gap"]))) == ticks


@pytest.mark.parametrize(
    ("first", "last"), [(0, 2_000), (None, None), (5, 1_700_000_000), (1_600_000_000, 1_600_000_000_000)]
)
def test_places_in_a_history_are_no_clock(first: int | None, last: int | None) -> None:
    for inputs, who in (
        ({"time": ["hour"]}, r"model\.inputs\.time = \['hour'\]"),
        ({"request_time": True}, "request_time"),
    ):
        with pytest.raises(UserError, match=rf"{who}.*{first} to {last}.*positions in a history") as caught:
            ticks_per_second(with_times(first, last), NextItemConfig(inputs=InputsConfig.model_validate(inputs)))
        assert "model.inputs.time_unit" in str(caught.value)
    told = NextItemConfig(inputs=InputsConfig(time=["gap"], time_unit="milliseconds"))
    assert ticks_per_second(with_times(first, last), told) == 1_000


def test_a_model_reads_times_only_if_configured() -> None:
    assert not NextItemConfig().uses_time
    assert NextItemConfig(inputs=InputsConfig(time=["gap"])).uses_time
    assert NextItemConfig(inputs=InputsConfig(request_time=True)).uses_time
