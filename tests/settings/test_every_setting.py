"""Every setting has an effect: each leaf of the config has an entry that changes it and sees what its description names change.

A setting without an entry fails `test_every_setting_has_an_entry`; its message says what to add.
"""

import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.settings.entry import Entry, check
from tests.settings.lab import WORLDS, Lab, model_of
from tests.settings.leaves import leaf_of, leaves
from tests.settings.observations.tables import ON_TWO_RANKS
from tests.settings.observations.training import seeds_of_step

MODULES = sorted(path.stem for path in (Path(__file__).parent / "entries").glob("*.py"))
ENTRIES: tuple[Entry, ...] = tuple(
    entry for name in MODULES for entry in importlib.import_module(f"tests.settings.entries.{name}").ENTRIES
)


def marked(entry: Entry) -> Any:
    """Return an entry as a test's parameter, marked if it needs rank processes."""
    return pytest.param(entry, id=entry.name, marks=[pytest.mark.ranks] if entry.observe in ON_TWO_RANKS else [])


@pytest.mark.parametrize("entry", map(marked, ENTRIES))
def test_the_setting_has_its_effect(lab: Lab, entry: Entry) -> None:
    check(entry, lab)


def covered(lab: Lab, entry: Entry) -> str:
    """Return the leaf that an entry is of."""
    if entry.leaf:
        return entry.leaf
    prefix = WORLDS[entry.world].prefix
    settings = model_of(lab.settings(entry.world, entry.base if entry.refused else entry.given))
    return leaf_of(settings, entry.key.removeprefix(f"{prefix}."), f".{prefix}" if prefix else "")


def test_every_setting_has_an_entry(lab: Lab) -> None:
    wanted = {
        leaf for world in WORLDS.values() for leaf in leaves(world.model, f".{world.prefix}" if world.prefix else "")
    }
    missing = sorted(wanted - {covered(lab, entry) for entry in ENTRIES})
    assert not missing, "\n".join(
        [
            "These settings have no entry, so that nothing shows that they have an effect:",
            *(f"    {leaf}" for leaf in missing),
            "Add to tests/settings/entries/, in the file of the section, for each of them, a line such as",
            '    Entry("train.batch_size", 5, batch_rows, 5)',
            "that is: the key as in a config; a value other than the default; an observation (a function of observations/ that",
            "returns what the setting's description names); and what it shows then, as a value or as a function of what it shows",
            "without. `*` stands for any name, and [kind] for the kind of the table, which `base` sets. If no result depends on",
            "the setting, say why in `free` and observe what it does instead. CONTRIBUTING.md, 'Adding a setting', has more.",
        ]
    )


@pytest.mark.ranks
def test_each_rank_has_its_own_seed_for_the_dropout_of_a_step(lab: Lab) -> None:
    first, second = lab.on_two_ranks(seeds_of_step, lab.job(lab.settings("events", {})))
    assert len(first) == len(second) == 1
    assert first != second
