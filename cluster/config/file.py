"""Reads plain values of config files, merges them over their base, and overrides them, all unchecked.

Imports neither torch nor ray.

base = "movielens100k_sasrec.toml"      # relative to this file; the values here are merged over it, section by section
"""

import copy
import json
import math
import tomllib
from collections.abc import Iterator
from datetime import date, time
from pathlib import Path
from typing import Any

from cluster.config.credentials import refusals_in
from trainer.config.renamed import RENAMED, with_current_names
from trainer.errors import UserError
from trainer.settings import plain_values
from trainer.storage.objects.paths import path_of


def read_values(path: str | Path) -> dict[str, Any]:
    """Return the values of a TOML or JSON file, merged over those of its base.

    Raises UserError if a file is neither, or is its own base.
    """
    values = _read(path_of(path), ())
    refuse_unusable(values, f"config {path}")
    return values


def refuse_unusable(values: Any, origin: str) -> None:
    """Raise UserError if a nested value is one that no setting may have.

    Called before any other check, because its message never repeats credentials.
    """
    refusals = [*refusals_in(values), *unusable_values(values)]
    if refusals:
        raise UserError(f"{origin}:\n  " + "\n  ".join(refusals))


def unusable_values(values: Any) -> Iterator[str]:
    """Yield "setting: reason" for each nested value that no setting of any type may have."""
    for place, value in plain_values(values):
        match value:
            case float() if not math.isfinite(value):
                yield f"{place}: must be a finite number (got {value})"
            case int() if not -(2**63) <= value < 2**63:
                yield f"{place}: must be within 64 bits, from -2^63 to 2^63 - 1"
            case str() if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
                yield f"{place}: must be text in UTF-8 without null characters (got {value!r})"


def _read(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return the values of a file and its bases.

    Args:
        file: The file.
        above: The files that this one is the base of, outermost first.
    """
    if file.resolve() in above:
        chain = " -> ".join(str(one) for one in (*above, file.resolve()))
        raise UserError(f"config {above[0]}: base leads back to a file that names it: {chain}")
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        asked = f", which is the base of {above[-1]}" if above else ""
        raise UserError(f"config {file}: no such file{asked}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config {file}: cannot be read ({error})") from None
    try:
        values: dict[str, Any] = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"config {file}: not valid {file.suffix.lstrip('.').upper() or 'TOML'}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"config {file}: must hold sections of settings, and holds {type(values).__name__}")
    values = with_current_names(values)
    if "base" not in values:
        return values
    base = values.pop("base")
    if not isinstance(base, str):
        raise UserError(f"config {file}: base = {base!r} must be the path of a config, relative to this file")
    return merged(_read(file.parent / base, (*above, file.resolve())), values)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return `above` merged over `below`, section by section. Neither is changed."""
    result = copy.deepcopy(below)
    for key, value in above.items():
        before = result.get(key)
        both = isinstance(before, dict) and isinstance(value, dict)
        result[key] = merged(before, value) if both else copy.deepcopy(value)  # type: ignore[arg-type]
    return result


def apply_override(override: str, values: dict[str, Any], example: str = "train.batch_size=256") -> None:
    """Set one `section.key=value` in `values`. The value is read as TOML, and as plain text if it is not TOML."""
    key, separator, text = override.partition("=")
    refuse_unusable({key.strip(): text.strip("[]\"' ")}, "--set")
    if not separator or not key.strip():
        form = "section.key=value" if "." in example else "key=value"
        raise UserError(f"--set {override}: write it as {form}, for example {example}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = None if text.strip() == "none" else text
    if isinstance(value, date | time):  # settings hold dates as text
        value = text.strip()
    refuse_unusable({key.strip(): value}, "--set")
    *sections, name = RENAMED.get(key.strip(), key.strip()).split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UserError(f"--set {override}: {section} is a value, not a section")
    place[name] = value
