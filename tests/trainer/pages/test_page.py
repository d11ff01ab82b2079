"""Names that come from logs stay text in a page, whatever they hold."""

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


def test_the_powers_of_a_logarithmic_axis_are_formulas():
    def draw() -> str:
        figure, axes = plt.subplots()
        axes.plot([1, 10, 1000], [1, 2, 3])
        axes.set(xscale="log", yscale="log")
        return str(page.plot_of(figure, "caption").svg)

    with plt.rc_context({"svg.hashsalt": "shoal"}):
        usual = draw()
    with page.drawing():
        assert draw() == usual


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_page_is_text(tmp_path, name):
    (tmp_path / "names.html.j2").write_text('{% extends "page.html.j2" %}{% block content %}{{ name }}{% endblock %}')
    text = page.render(tmp_path, "names.html.j2", title=name, name=name)
    for broken in ("<script>alert", "<img"):
        assert broken not in text
