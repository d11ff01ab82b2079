"""Names that come from logs stay text in a page, whatever they hold."""

import re

import pytest
from markupsafe import escape
from matplotlib import pyplot as plt

from trainer.pages import page

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "--><script>alert(1)</script>",
    "$a$ and $\\frac$",
    "$5 off, was $7",
    "_{^",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_plot_is_text(name):
    with page.drawing():
        figure, axes = plt.subplots()
        axes.bar([name], [1.0])
        axes.set_title(name)
        axes.set_xlabel(name)
        axes.annotate(name, (0, 0))
        svg = str(page.plot_of(figure, "caption").svg)
    for broken in ("<script", "<img"):
        assert broken not in svg.replace(str(escape(name)), "")


def drawn(scale: str = "linear") -> page.Plot:
    with page.drawing():
        figure, axes = plt.subplots()
        axes.plot([1, 10, 1000], [1, 2, 3], "o-", color=page.COLOURS[0])
        axes.set(xscale=scale, xlabel="steps of training")
        return page.plot_of(figure, 'a caption with "quotes"')


def test_a_logarithmic_axis_has_plain_numbers():
    svg = str(page.inline(drawn("log"), 1))
    assert "$" not in svg
    assert {"1", "10", "100", "1,000"} <= set(re.sub("<[^>]*>", " ", svg).split())


def test_equal_plots_are_equal_bytes():
    assert str(drawn().svg) == str(drawn().svg)


def test_plots_of_a_page_share_no_id_and_follow_its_colours():
    first, second = (str(page.inline(drawn(), number)) for number in (1, 2))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert len(ids[0]) == len(ids[1]) > 5
    assert not ids[0] & ids[1]
    assert set(re.findall(r'href="#([^"]+)"', first)) <= ids[0]
    assert page.COLOURS[0] not in first
    assert "var(--first)" in first
    assert page.INK not in first
    assert "currentColor" in first
    assert "<style" not in first, "a style of a plot would hold for the whole page"
    assert 'aria-label="a caption with &#34;quotes&#34;"' in first


def test_text_that_looks_like_markup_of_a_plot_stays_as_it_is():
    with page.drawing():
        figure, axes = plt.subplots()
        axes.set_title(f'id="x" url(#y) fill: {page.INK}')
        svg = str(page.inline(page.plot_of(figure, "caption"), 7))
    assert f'id="x" url(#y) fill: {page.INK}' in svg.replace("&quot;", '"')


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_page_is_text(tmp_path, name):
    (tmp_path / "names.html.j2").write_text('{% extends "page.html.j2" %}{% block content %}{{ name }}{% endblock %}')
    text = page.render(tmp_path, "names.html.j2", title=name, name=name)
    for broken in ("<script>alert", "<img"):
        assert broken not in text


def test_closed_details_are_printed(tmp_path):
    (tmp_path / "one.html.j2").write_text('{% extends "page.html.j2" %}')
    _, _, printed = page.render(tmp_path, "one.html.j2", title="one").partition("@media print{")
    assert "details::details-content{content-visibility:visible}" in printed
