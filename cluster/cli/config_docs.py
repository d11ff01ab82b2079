"""docs/configuration.md, written from the descriptions that the settings carry. Run as `python -m cluster.cli.config_docs`.

A test compares the file with what this module says, so that no setting is undocumented and no default out of date.
Imports neither torch nor ray.
"""

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cluster.config.run_config import Config
from cluster.study.config import AssumedConfig, RandomConfig, RangeConfig, StudyConfig, VariantConfig
from trainer.config.identity import FREE_TO_CHANGE, is_among

_INTRODUCTION = """\
# Configuration

A config is a TOML file; `configs/` has ready ones. Every setting has a default but `logs.path` (and the times of a
`global_time` split), so a config names what differs:

```toml
[logs]
path = "events/*.parquet"

[tables.item]
dim = 128
```

- `--set section.key=value` overrides a setting for one command, and may be given several times. The value is read as TOML, and as
  plain text where it is not TOML: `--set train.batch_size=256`, `--set logs.path=events.parquet`, `--set evaluate.ks=[10,100]`.
  TOML has no word for "none"; `--set train.early_stopping=none` sets a setting to it.
- An unknown setting is an error that names the nearest known one. All errors of a config are shown at once.
- The resolved config, defaults included, is saved as `config.json` in the run folder. Commands take that file as CONFIG too.
- A run folder belongs to one set of settings: running a command again with others is refused, naming each that differs.
  Settings marked "free" below are not part of a run's identity and may differ from start to start. Under a `train.schedule`
  that falls towards the last step, `train.epochs` and `train.max_steps` are not free, because they decide the step sizes. With
  `[train.days]` the times of the split are free: they move on as logs come.

This page is generated: `make docs` writes it anew from the code.
"""
_STUDIES = """
# Study files

`shoal study` reads a TOML file with the sections above, in part or in a config that `base` names (relative to the file), and the
ones below. [study.md](study.md) tells how they work together.
"""
_TABLE = ".item"  # of the tables by name, which are one so far
_HEADER = "| setting | values | default | meaning |\n|---|---|---|---|\n"


@dataclass(frozen=True)
class Section:
    """One TOML table: its name as in `[name]`, the kind it is for if there are several, and the model of its settings."""

    name: str
    kind: str | None
    model: type[BaseModel]


def main() -> None:
    """Print the page."""
    print(page(), end="")


def page() -> str:
    """The whole page, as Markdown. A table that several kinds of another have is described once."""
    both = (dict.fromkeys(sections()), study_sections())
    runs, studies = ("".join(_section_text(section) for section in found) for found in both)
    return _INTRODUCTION + runs + _STUDIES + studies


def study_sections() -> Iterator[Section]:
    """The TOML tables that a study file has besides those of a config."""
    yield Section("study", None, StudyConfig)
    yield Section("[study.variants]", None, VariantConfig)
    yield Section("study.random", None, RandomConfig)
    yield Section("study.random.ranges.KEY", None, RangeConfig)
    yield Section("study.assumed", None, AssumedConfig)


def sections() -> Iterator[Section]:
    """Every TOML table of a config, in the order of the config's fields."""
    for name, field in Config.model_fields.items():
        yield from _sections_of(name, field)


def _sections_of(name: str, field: FieldInfo) -> Iterator[Section]:
    models = _models_in(field.annotation)
    if get_origin(field.annotation) is dict:
        name += _TABLE
    for model in models:
        yield Section(name, _kind_of(model) if len(models) > 1 else None, model)
        for inner_name, inner in model.model_fields.items():
            yield from _sections_of(f"{name}.{inner_name}", inner)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a setting may hold, if it is a table of settings and not a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) not in (Annotated, Union, types.UnionType, dict):
        return []
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _kind_of(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field is not None else None


def _section_text(section: Section) -> str:
    values = [(name, field) for name, field in section.model.model_fields.items() if not _models_in(field.annotation)]
    title = f"`[{section.name}]`" + (f' with `kind = "{section.kind}"`' if section.kind else "")
    summary = " ".join((section.model.__doc__ or "").split())
    if not values:
        return ""
    schema = section.model.model_json_schema()["properties"]
    rows = [_row(f"{section.name}.{name}", name, field, schema[name]) for name, field in values]
    return f"\n## {title}\n\n{summary}\n\n{_HEADER}" + "".join(rows)


def _row(path: str, name: str, field: FieldInfo, schema: dict[str, Any]) -> str:
    free = " (free)" if _is_free(path) else ""
    meaning = (field.description or "").replace("|", "\\|")
    return f"| `{name}`{free} | {_values(schema)} | {_default(field)} | {meaning} |\n"


def _is_free(path: str) -> bool:
    return is_among(path, FREE_TO_CHANGE)


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "must be given"
    return "none" if default is None else f"`{_as_toml(default)}`"


def _as_toml(value: Any) -> str:
    # TOML and JSON write strings, numbers, lists of them and true and false alike.
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _values(schema: dict[str, Any]) -> str:
    """What a setting may be, from its JSON schema."""
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_values(choice) for choice in schema["anyOf"])
    if "prefixItems" in schema:
        return f"[{', '.join(_values(item) for item in schema['prefixItems'])}]"
    if "$ref" in schema:
        return "a table"
    match schema.get("type"):
        case None:
            return "any value"
        case "object":
            inner = schema.get("additionalProperties")
            return f"table of: {_values(inner)}" if isinstance(inner, dict) else "a table"
        case "null":
            return "none"
        case "boolean":
            return "`true`, `false`"
        case "array":
            return f"list of: {_values(schema['items'])}"
        case "string" if schema.get("format") == "bytes":
            return 'bytes, as a number or as text such as `"80GiB"`'
        case "string":
            return "text" + (f" like `{schema['pattern']}`".replace("|", "\\|") if "pattern" in schema else "")
        case kind:
            return ", ".join([str(kind), *_bounds(schema)])


def _bounds(schema: dict[str, Any]) -> Iterator[str]:
    for key, phrase in (
        ("exclusiveMinimum", "above"),
        ("minimum", "at least"),
        ("exclusiveMaximum", "below"),
        ("maximum", "at most"),
        ("multipleOf", "multiple of"),
    ):
        if key in schema:
            yield f"{phrase} {schema[key]:g}"


if __name__ == "__main__":
    main()
