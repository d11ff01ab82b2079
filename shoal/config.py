"""Settings of a run, from a file or a dictionary, with overrides. Imports neither torch nor ray."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.config import run_config
from cluster.config.file import apply_override, merged, read_values, refuse_unusable
from cluster.config.run_config import check_config
from trainer.config.renamed import with_current_names
from trainer.errors import UserError

Overrides = Mapping[str, Any] | Sequence[str]


class Config(run_config.Config, frozen=True):
    """All settings of a run, checked: `config.train.batch_size`, `config.tables["item"].dim`, and so on.

    docs/configuration.md lists them. A config is immutable; `replace` returns another one.
    """

    @classmethod
    def load(cls, path: str | Path, overrides: Overrides = ()) -> "Config":
        """Load a TOML file, or the config.json of a run.

        Args:
            path: the file.
            overrides: settings that replace those of the file: {"train.epochs": 3}, or ["train.epochs=3"] as for `--set`.

        Raises:
            UserError: the file cannot be read, or a setting is unknown or does not fit. The message names it.
        """
        return cls._checked(read_values(path), overrides, str(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], overrides: Overrides = ()) -> "Config":
        """Build a config from nested settings: {"logs": {"path": "events.parquet"}, "train": {"epochs": 3}}.

        Raises:
            UserError: a setting is unknown or does not fit. The message names it.
        """
        return cls._checked(_plain(values), overrides, "from_dict")

    def replace(self, overrides: Overrides) -> "Config":
        """Return a config that differs from this one in some settings. Raises UserError as `load` does."""
        return self._checked(self.model_dump(mode="json"), overrides, "replace")

    @classmethod
    def _checked(cls, values: dict[str, Any], overrides: Overrides, origin: str) -> "Config":
        if isinstance(overrides, str):
            raise UserError(f"overrides {overrides!r}: must be a dictionary or a list, for example [{overrides!r}]")
        if isinstance(overrides, Mapping):
            values = merged(values, with_current_names(_nested(overrides)))
        else:
            for override in overrides:
                apply_override(override, values)
        checked = check_config(values, origin)
        return cls.model_construct(checked.model_fields_set, **dict(checked))  # the values have just been checked


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted names as sections: {"train.epochs": 3} as {"train": {"epochs": 3}}."""
    nested: dict[str, Any] = {}
    for key, value in _plain(overrides).items():
        refuse_unusable({key: value}, "overrides")
        for section in reversed(key.split(".")):
            value = {section: value}
        nested = merged(nested, value)
    return nested


def _plain(value: Any) -> Any:
    """Return the values that a file could hold: paths as text, tuples as lists, in dictionaries of their own."""
    match value:
        case Mapping():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case Path():
            return str(value)
        case _:
            return value
