"""The benchmark of vocabularies: figures of a small log, and the page of the stored figures."""

import pytest

from benchmarks.vocabularies import FEW, PAGE, figures_of, with_tables


@pytest.mark.usefixtures("ray_session")
def test_the_figures_are_of_the_items():
    figures = figures_of(FEW + 500)
    assert figures["items"] == FEW + 500
    assert 0 <= figures["peak_bytes"] < 1 << 30


def test_the_page_has_the_stored_figures():
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page
