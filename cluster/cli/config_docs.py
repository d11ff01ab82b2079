"""Generates docs/configuration.md from the descriptions of the settings. Run as `python -m cluster.cli.config_docs`.

A description ends with "; default: ..." if the default follows from other settings or from the machine. A test compares the page
with this module's output, so that each setting is documented and each default is current. Imports neither torch nor ray.
"""

import json
import types
from collections.abc import Iterable, Iterator
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

A config is a TOML file; `configs/` contains examples. Each setting has a default except `logs.path` (and the times of a
`global_time` split), so a config lists only what differs from the defaults:

```toml
[logs]
path = "events/*.parquet"

[tables.item]
dim = 128
```

- `NAME` is a name of your choice: of a table, a feature or a label.
- `--set section.key=value` overrides a setting for one command, and can be repeated. The value is read as TOML, and as plain text
  if it is not TOML: `--set train.batch_size=256`, `--set logs.path=events.parquet`, `--set evaluate.ks=[10,100]`.
- A default in words applies while the setting is unset. `--set train.early_stopping=none` unsets a setting that a config sets.
- An unknown setting is an error that names the nearest known one. All errors of a config are reported at once.
- The resolved config, including defaults, is saved as `config.json` in the run folder. Commands accept that file as CONFIG too.
- A run folder belongs to one set of settings. A command with other settings is refused, with the name of each that differs.
  Settings marked "free" below do not identify a run and may differ from start to start. Under a `train.schedule` that falls
  towards the last step, `train.epochs` and `train.max_steps` are not free, because they determine the learning rates. With
  `[train.days]` the times of the split are free, because they move forward with new logs.

This page is generated: `make docs` rewrites it from the code.
"""
_STUDIES = """
# Study files

`shoal study` reads a TOML file with the sections above and those below. The sections above may also be in a config that `base`
names, relative to the file. [study.md](study.md) explains how they work together.
"""
_ANY_NAME = ".NAME"  # of tables, features and labels
_DEFAULT = "; default: "  # what follows it in a description is the default in words
_HEADER = "| setting | values | default | meaning |\n|---|---|---|---|\n"


@dataclass(frozen=True)
class Section:
    """One TOML table."""

    name: str  # as in `[name]`
    choice: str | None  # the setting that chooses it among several models, as in `kind = "hash"`
    model: type[BaseModel]


def main() -> None:
    """Print the page."""
    print(page(), end="")


def page() -> str:
    """Return the whole page, as Markdown. A model that several tables have is described once."""
    return _INTRODUCTION + _text_of(sections()) + _STUDIES + _text_of(study_sections())


def _text_of(every: Iterable[Section]) -> str:
    tables: dict[type[BaseModel], list[Section]] = {}
    for section in dict.fromkeys(every):
        tables.setdefault(section.model, []).append(section)
    return "".join(_section_text(first, others) for first, *others in tables.values())


def study_sections() -> Iterator[Section]:
    """Yield the TOML tables of a study file in addition to those of a config."""
    yield Section("study", None, StudyConfig)
    yield Section("[study.variants]", None, VariantConfig)
    yield Section("study.random", None, RandomConfig)
    yield Section("study.random.ranges.KEY", None, RangeConfig)
    yield Section("study.assumed", None, AssumedConfig)


def sections() -> Iterator[Section]:
    """Yield every TOML table of a config, in the order of its fields."""
    for name, field in Config.model_fields.items():
        yield from _sections_of(name, field)


def _sections_of(name: str, field: FieldInfo) -> Iterator[Section]:
    models = _models_in(field.annotation)
    if get_origin(field.annotation) is dict:
        name += _ANY_NAME
    for model in models:
        yield Section(name, _choice_of(model) if len(models) > 1 else None, model)
        for inner_name, inner in model.model_fields.items():
            yield from _sections_of(f"{name}.{inner_name}", inner)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a setting may hold if it is a table of settings; none for a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) not in (Annotated, Union, types.UnionType, dict):
        return []
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _choice_of(model: type[BaseModel]) -> str | None:
    """Return the setting by which a union chooses a model: the `task` or `kind` that has one value only."""
    for name in ("task", "kind"):
        field = model.model_fields.get(name)
        values = get_args(field.annotation) if field is not None else ()
        if len(values) == 1:
            return f'{name} = "{values[0]}"'
    return None


def _section_text(section: Section, others: list[Section]) -> str:
    """Return the text of a table. `others` are those with the same settings."""
    values = [(name, field) for name, field in section.model.model_fields.items() if not _models_in(field.annotation)]
    if not values:
        return ""
    title = f"`[{section.name}]`" + (f" with `{section.choice}`" if section.choice else "")
    summary = " ".join((section.model.__doc__ or "").split())
    if others:
        summary += f" The same settings: {', '.join(f'`[{other.name}]`' for other in others)}."
    schema = section.model.model_json_schema()["properties"]
    rows = [_row(f"{section.name}.{name}", name, field, schema[name]) for name, field in values]
    return f"\n## {title}\n\n{summary}\n\n{_HEADER}" + "".join(rows)


def _row(path: str, name: str, field: FieldInfo, schema: dict[str, Any]) -> str:
    free = " (free)" if _is_free(path) else ""
    meaning, _, default = (field.description or "").replace("|", "\\|").partition(_DEFAULT)
    return f"| `{name}`{free} | {_values(schema)} | {default or _default(field)} | {meaning} |\n"


def _is_free(path: str) -> bool:
    return is_among(path, FREE_TO_CHANGE)


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "must be given"
    return "unset" if default is None else f"`{_as_toml(default)}`"


def _as_toml(value: Any) -> str:
    # Strings, numbers, lists of them, true and false are the same in TOML and JSON.
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _values(schema: dict[str, Any]) -> str:
    """Return the values that a setting may have, from its JSON schema."""
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_values(choice) for choice in schema["anyOf"] if choice.get("type") != "null")
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
        case "boolean":
            return "`true`, `false`"
        case "array":
            return f"list of: {_values(schema['items'])}"
        case "string" if schema.get("format") == "bytes":
            return 'bytes, as a number or as text such as `"80GiB"`'
        case "string":
            return "text"
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
