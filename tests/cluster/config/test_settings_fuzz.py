"""Whatever is given for a setting ends in a config or in one message, never in a traceback."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_config import check_config, load_config
from trainer.errors import UserError
from trainer.settings import flatten

VALUES = [
    "5",
    "-1",
    "0",
    "1.5",
    "inf",
    "-inf",
    "nan",
    "1e400",
    "99999999999999999999999",
    "-99999999999999999999999",
    '"text"',
    '""',
    '"[/b]"',
    '"nul\\u0000byte"',
    "true",
    "[]",
    "[[]]",
    "[5]",
    '["a", 5]',
    "[{ a = 1 }]",
    "{}",
    "{ a = 5 }",
    "{ kind = 5 }",
    '{ kind = "nosuch" }',
    "{ kind = [] }",
    "{ a = { b = { c = [1] } } }",
    "2020-01-01",
    "12:30:00",
    "none",
    "=",
    "",
]
NEXT_ITEM = {
    "logs": {
        "path": "events.parquet",
        "features": {"price": {"kind": "numeric"}, "brand": {"kind": "categorical"}},
        "items": {"path": "items.parquet"},
    },
    "model": {"objective": {"kind": "sampled_softmax", "negatives": {"kind": "mixed"}}},
    "train": {"clip_norm": 1.0, "betas": [0.9, 0.99]},
}
RANKING = {
    "logs": {"path": "events.parquet", "labels": ["click"], "history_label": "click"},
    "split": {"kind": "global_time", "validation_time": "2020-01-01", "test_time": "2020-02-01"},
    "train": {"days": {"length": "1d"}},
}


def keys_of(config: Any, prefix: str = "") -> list[str]:
    """Return every leaf and every section of a resolved config."""
    keys = []
    for name, value in config.items():
        key = f"{prefix}{name}"
        keys.append(key)
        if isinstance(value, dict):
            keys += keys_of(value, f"{key}.")
    return keys


@pytest.mark.parametrize("base", [NEXT_ITEM, RANKING], ids=["next item", "ranking"])
def test_any_value_of_any_setting_is_taken_or_refused_by_name(tmp_path, base):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(base))
    resolved = load_config(file).model_dump(mode="json")
    keys = keys_of(resolved)
    assert len(keys) > 100
    failures = []
    for key in keys:
        for value in VALUES:
            try:
                load_config(file, [f"{key}={value}"])
            except UserError as error:
                if "\n" not in str(error) and key.split(".")[0] not in str(error):
                    failures.append(f"{key}={value}: no setting is named in {error}")
            except Exception as error:  # noqa: BLE001 - the test is that there is no other
                failures.append(f"{key}={value}: {error!r}")
    assert not failures, "\n".join(failures[:40])


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e400"])
def test_a_number_that_is_not_finite_is_refused_everywhere(tmp_path, value):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(NEXT_ITEM))
    resolved = flatten(load_config(file).model_dump(mode="json"))
    numbers = [key for key, default in resolved.items() if isinstance(default, float)]
    assert "cluster.collective_timeout_seconds" in numbers
    for key in numbers:
        with pytest.raises(UserError, match="finite"):
            load_config(file, [f"{key}={value}"])


@pytest.mark.parametrize("key", ["run.seed", "train.max_steps", "checkpoint.every_steps", "train.batch_size"])
def test_a_number_beyond_64_bits_is_refused(tmp_path, key):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(NEXT_ITEM))
    with pytest.raises(UserError, match=rf"{key}.*64 bits"):
        load_config(file, [f"{key}={2**63}"])


def test_a_timeout_beyond_the_limit_of_torch_is_refused(tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(NEXT_ITEM))
    with pytest.raises(UserError, match="collective_timeout_seconds"):
        load_config(file, ["cluster.collective_timeout_seconds=1e300"])


@pytest.mark.parametrize("values", [[], 5, "text", None, {"logs": 5}, {"tables": {"item": []}}, {"tables": []}, {5: 5}])
def test_values_that_are_no_config_are_refused(values):
    with pytest.raises(UserError):
        check_config(values, "test")


def test_a_setting_within_a_value_is_refused(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('logs.path = "a.parquet"')
    for override in (
        "logs.path.x=1",
        "logs.path.x.y=1",
        ".=1",
        "..=1",
        "a..b=1",
        "=1",
        "run.seed",
        "train.=1",
        "[/b]=[/b]",
    ):
        with pytest.raises(UserError):
            load_config(file, [override])


def test_text_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('logs.path = "a.parquet"')
    with pytest.raises(UserError, match=r"run\.dir"):
        load_config(Path(file), ["run.dir=\udce4"])


@pytest.mark.parametrize("text", ["[]", "5", "null", '"logs"', "[1, 2"])
def test_a_file_that_holds_no_sections_is_refused(tmp_path, text):
    file = tmp_path / "run.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"run\.json"):
        load_config(file, ["run.seed=1"])
