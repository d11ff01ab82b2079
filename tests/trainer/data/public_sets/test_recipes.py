"""The recipes for public sets name columns that the converters write, in types that they can take."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config.run_config import check_config
from trainer.data.logs.contract import find_inputs, inspect_inputs
from trainer.data.public_sets import amazon, kuairand, movielens, taobao, yambda

ROOT = Path(__file__).resolve().parents[4]
PAGE = (ROOT / "docs/public_sets.md").read_text(encoding="utf-8")
RECIPES = [
    *(tomllib.loads(block) for block in re.findall(r"^```toml\n(.*?)^```", PAGE, re.M | re.S)),
    tomllib.loads((ROOT / "configs/kuairand.toml").read_text(encoding="utf-8")),
]
AMAZON_EVENTS = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("time", pa.int64())])
SCHEMAS: dict[str, dict[str, pa.Schema]] = {
    "ml-1m": {"events-00000": movielens.EVENTS, "items": movielens.ITEMS, "users": movielens.USERS},
    "amazon": {"events-00000": AMAZON_EVENTS, "items": amazon.ITEMS},
    "kuairand": {"events-00000": kuairand.IMPRESSIONS, "items": kuairand.ITEMS, "users": kuairand.USERS},
    "kuairand-valtest": {
        "impressions-val": kuairand.IMPRESSIONS,
        "history": kuairand.HISTORY,
        "items": kuairand.ITEMS,
        "users": kuairand.USERS,
    },
    "taobao": {"events-00000": taobao.EVENTS, "items": taobao.ITEMS},
    "yambda": {"events-00000": yambda.EVENTS, "items": yambda.ITEMS},
}
VALUES = {"int64": 1, "int8": 1, "double": 1.0, "string": "1", "list<element: string>": ["1"]}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe["run"]["dir"])
def test_a_recipe_fits_the_output_of_the_converter(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, tables in SCHEMAS.items():
        for name, schema in tables.items():
            path = tmp_path / "logs" / folder / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            columns = {field.name: pa.array([VALUES[str(field.type)]], field.type) for field in schema}
            pq.write_table(pa.table(columns), path)
    monkeypatch.chdir(tmp_path)
    logs = check_config(recipe, "test").logs
    inputs = inspect_inputs(find_inputs(logs), logs)
    sources = {"logs"} | {name for name in ("history", "items", "users") if getattr(logs, name) is not None}
    assert set(inputs.contracts) == sources


def test_no_recipe_leaves_feedback_of_kuairand_unnamed() -> None:
    feedback = {*kuairand.IMPRESSIONS.names[7:]} - {"duration_ms"}
    for recipe in RECIPES:
        if "kuairand" in recipe["run"]["dir"]:
            assert {*recipe["logs"]["labels"], *recipe["logs"]["outcomes"]} == feedback
