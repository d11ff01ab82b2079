"""Messages for what pydantic refuses: the name of each setting once, and the nearest name or choice that exists."""

import difflib
import types
from collections.abc import Iterable
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, origin: str, model: type[BaseModel]) -> str:
    """Return the message for a user: each setting once, with the nearest name that exists.

    Args:
        error: What pydantic raised.
        origin: The source of the settings, for example a file.
        model: The model that the settings were checked by.
    """
    details = error.errors(include_url=False)
    places = [_walk(model, detail["loc"])[0] for detail in details]
    choices: dict[str, list[str]] = {}  # of a setting that is one of several literals, or a list of them
    for location, detail in zip(places, details, strict=True):
        if detail["type"] == "literal_error":
            choices.setdefault(".".join(location), []).append(detail["ctx"]["expected"])
    lines = []
    for location, detail in zip(places, details, strict=True):
        key = ".".join(location) or "(whole config)"
        match detail["type"]:
            case "extra_forbidden":
                known = _known_keys(model, detail["loc"][:-1])
                nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
                hint = f"; did you mean {'.'.join([*location[:-1], nearest[0]])}?" if nearest else ""
                lines.append(f"{key}: no such setting{hint}")
            case "union_tag_invalid":
                lines.append(f"{key}.kind: {_wrong_kind(detail)}")
            case "literal_error" if any(other.startswith(f"{key}.") for other in choices):
                pass  # a list of literals was given, and one of its entries is the mistake
            case "literal_error" | "list_type" if key in choices:
                lines.append(f"{key}: no such choice {detail['input']!r}; choose {', '.join(choices[key])}")
            case "model_type" | "model_attributes_type" | "dict_type":
                lines.append(f"{key}: must be a table of settings (got {detail['input']!r})")
            case "missing":
                lines.append(f"{key}: is missing; add it to the config or pass --set {key}=...")
            case _:
                value = detail.get("input")
                got = f" (got {value!r})" if isinstance(value, str | int | float | bool) else ""
                lines.append(
                    f"{key}: {detail['msg'].removeprefix('Value error, ').replace('Input should be', 'must be')}{got}"
                )
    return f"config {origin}:\n  " + "\n  ".join(dict.fromkeys(lines))


def _wrong_kind(detail: Any) -> str:
    """Return the kinds that exist. The message of a tagged union itself speaks of tags."""
    context = detail["ctx"]
    return f"no such kind {context['tag']!r}; choose one of {context['expected_tags']}"


def _walk(model: type[BaseModel], location: Iterable[str | int]) -> tuple[list[str], list[Any]]:
    """Follow the place of an error through the types of the settings.

    Within a union pydantic adds to the place which member it tried, by its tag or its type. The name of the setting has no such
    part.

    Args:
        model: The whole settings.
        location: The place that pydantic names.

    Returns:
        The place as a user would write it, and the types that a value there may have.
    """
    place: list[str] = []
    kinds: list[Any] = [model]
    for part in location:
        members = [member for kind in kinds for member in _members(kind)]
        if len(members) > len(kinds):
            kinds = [member for member in members if part in _tags_of(member)] or members
            continue
        place.append(str(part))
        kinds = [inner for member in members for inner in _inside(member, part)]
    return place, kinds


def _members(annotation: Any) -> list[Any]:
    """Return the members of a union, without None, or the type itself."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for part in get_args(annotation) if part is not types.NoneType for member in _members(part)]
    return [annotation]


def _inside(annotation: Any, part: str | int) -> list[Any]:
    """Return the type of a part of a value: of a field, of an entry of a table, or of an element of a list."""
    if _is_model(annotation):
        field = annotation.model_fields.get(part)
        return [] if field is None else [field.annotation]
    match get_origin(annotation):
        case builtin if builtin is dict:
            return [get_args(annotation)[1]]
        case builtin if builtin in (list, tuple) and isinstance(part, int):
            return [get_args(annotation)[0]]
        case _:
            return []


def _known_keys(model: type[BaseModel], location: Iterable[str | int]) -> list[str]:
    """Return the names of the settings that exist at a place."""
    _, kinds = _walk(model, location)
    members = [member for kind in kinds for member in _members(kind)]
    return sorted({name for member in members if _is_model(member) for name in member.model_fields})


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _tags_of(annotation: Any) -> tuple[Any, ...]:
    """Return the values of `task` or `kind` by which a union chooses a model."""
    if not _is_model(annotation):
        return ()
    fields = [annotation.model_fields[name] for name in ("task", "kind") if name in annotation.model_fields]
    return tuple(tag for field in fields for tag in get_args(field.annotation))
