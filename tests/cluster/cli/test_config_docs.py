"""docs/configuration.md: each table of settings once, defaults in words where they are derived, and no regular expression."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from cluster.cli import config_docs
from cluster.cli.config_docs import Section
from cluster.plan.workload import WorkloadConfig, WorkloadTableConfig, WorkloadTopologyConfig
from trainer.data.synthetic.impression_world import ImpressionConfig
from trainer.data.synthetic.world import SyntheticConfig

PAGE = config_docs.page()
SECTIONS = dict.fromkeys((*config_docs.sections(), *config_docs.study_sections()))
OTHER_MODELS: tuple[type[BaseModel], ...] = (
    WorkloadConfig,
    WorkloadTopologyConfig,
    WorkloadTableConfig,
    SyntheticConfig,
    ImpressionConfig,
)


def described() -> Iterator[tuple[str, Any]]:
    """Yield the name and field of every setting that holds a value and not a table."""
    models = {section.model: section.name for section in SECTIONS} | {model: model.__name__ for model in OTHER_MODELS}
    for model, name in models.items():
        for field_name, field in model.model_fields.items():
            if not config_docs._models_in(field.annotation):
                yield f"{name}.{field_name}", field


SETTINGS = dict(described())


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: f"{section.name} {section.choice}")
def test_every_table_is_named_and_described_once(section: Section) -> None:
    title = f"## `[{section.name}]`" + (f" with `{section.choice}`" if section.choice else "")
    has_values = any(not config_docs._models_in(field.annotation) for field in section.model.model_fields.values())
    assert len(re.findall(f"^{re.escape(title)}$", PAGE, re.M)) <= 1
    assert not has_values or f"`[{section.name}]`" in PAGE


def test_the_page_shows_no_regular_expression_and_no_placeholder_that_looks_like_a_name() -> None:
    assert "[A-Za-z" not in PAGE
    assert "(hr|" not in PAGE.replace("\\|", "|")
    assert "tables.item]" not in PAGE.replace("[tables.item]\ndim", "")
    assert "features.item]" not in PAGE


@pytest.mark.parametrize("name", SETTINGS)
def test_an_unset_setting_has_its_default_in_words(name: str) -> None:
    """A default of None says nothing to a reader."""
    field = SETTINGS[name]
    assert field.description
    is_unset = not field.is_required() and field.get_default(call_default_factory=True) is None
    assert not is_unset or config_docs._DEFAULT in field.description, name


@pytest.mark.parametrize("name", SETTINGS)
def test_descriptions_speak_plainly(name: str) -> None:
    """None is a value of Python, not of a setting, except where a choice is called "none"."""
    description = SETTINGS[name].description
    assert not re.search(r"\bnone (takes|starts|chooses)\b|\(none\b|\btold\b|\bwhat of\b|\banew\b", description)
