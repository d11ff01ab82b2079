"""Settings that have another name than in earlier versions.

Configs and checkpoints with an earlier name are read as before, and digests of a config do not depend on the renaming.
"""

from typing import Any

RENAMED = {"train.ledger": "train.sample_log"}  # name by earlier name
EARLIER_NAMES = {name: earlier for earlier, name in RENAMED.items()}


def with_current_names(values: dict[str, Any]) -> dict[str, Any]:
    """Return plain values of a config with the current name of each setting.

    A section that has both names is unchanged, and its check refuses the earlier one.
    """
    return _with_names(values, RENAMED)


def with_earlier_names(values: dict[str, Any]) -> dict[str, Any]:
    """Return plain values of a resolved config with the names of earlier versions, for digests."""
    return _with_names(values, EARLIER_NAMES)


def _with_names(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    for before, after in names.items():
        section, _, old = before.partition(".")
        new = after.partition(".")[2]
        settings = values.get(section)
        if isinstance(settings, dict) and old in settings and new not in settings:
            renamed = {new if name == old else name: value for name, value in settings.items()}
            values = {**values, section: renamed}
    return values
