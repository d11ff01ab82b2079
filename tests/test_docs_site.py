"""Tests of the documentation site's hooks and navigation. The site itself is built by `make docs`."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {"config_file_path": str(ROOT / "mkdocs.yml")}


def hook(name: str) -> ModuleType:
    """Return a module of docs/hooks, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rendered(name: str, markdown: str, page: str = "index.md") -> str:
    """Return what a hook makes of the text of a page."""
    site_page = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    text: str = hook(name).on_page_markdown(markdown, page=site_page, config=CONFIG, files=None)
    return text


@pytest.mark.parametrize(
    ("page", "markdown", "expected"),
    [
        ("sharding.md", "[models/costs.py](../models/costs.py)", "`models/costs.py`"),
        ("index.md", "[README](../README.md#folders)", "README (`README.md`)"),
        ("results.md", "[results/kuairand](results/kuairand)", "`docs/results/kuairand`"),
        ("results.md", "[turns](results/benchmark.json)", "[turns](results/benchmark.json)"),
        ("data.md", "[Ids](ids.md#hash)", "[Ids](ids.md#hash)"),
        (
            "decisions/order.md",
            "[order](../data.md#the-order-of-examples)",
            "[order](../data.md#the-order-of-examples)",
        ),
        ("decisions/order.md", "[rules](../../CONTRIBUTING.md)", "rules (`CONTRIBUTING.md`)"),
        ("sharding.md", "![8 GPUs](plans/ranking_8gpu.svg)", "![8 GPUs](plans/ranking_8gpu.svg)"),
    ],
)
def test_links_that_leave_the_site_become_paths(page: str, markdown: str, expected: str) -> None:
    assert rendered("outside_links", markdown, page) == expected


def test_the_code_map_lists_every_package_with_its_files() -> None:
    text = rendered("code_map", "before\n\n<!-- code map -->\n\nafter")
    for folder in ("cluster/driver", "trainer", "sharding/tables", "models/attention"):
        assert f"### {folder}\n" in text
    assert "| `reference.py` |" in text
    assert text.startswith("before")
    assert text.endswith("after")


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"([\w/]+\.md)$", navigation, re.M)
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(str(page) for page in pages if page.parts[0] != "results")
