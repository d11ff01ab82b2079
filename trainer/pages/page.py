"""HTML pages: one look, one way to render, and plots as inline SVG, so that a page needs no other file."""

import io
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup, escape

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter

from trainer.pages.text import figure_text

COLOURS = ("#0b7285", "#e8590c", "#5f3dc4")
GREY = "#adb5bd"
INK = "#1b2a33"
FAINT_INK = "#868e96"

# In a page these colours follow its light or dark scheme (page.html.j2).
_SCHEME = {
    COLOURS[0]: "--first",
    COLOURS[1]: "--second",
    COLOURS[2]: "--third",
    GREY: "--grey",
    FAINT_INK: "--muted",
    "#fff": "--paper",
    "#c92a2a": "--alarm",
    "#e6ecef": "--line",
}
_COLOUR = re.compile(r"(fill|stroke)(: ?|=\")(#[0-9a-f]{3}(?:[0-9a-f]{3})?)\b")
_REFERENCE = re.compile(r"(\bid=\"|href=\"#|url\(#)")
_TAG = re.compile(r"<[^>]+>")
_NOT_SHOWN = re.compile(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>|<!--.*?-->", re.DOTALL)
# On a small screen a plot is not narrower, so that its text can be read; it scrolls within its figure.
_SMALLEST_WIDTH = "29rem"
_SMALLEST_SHARE = 0.6  # of the width of a wide plot
_SMALLEST_PICTURE_WIDTH = "52rem"  # of pictures without a width of their own, which are as wide as the page

_STYLE: Any = {
    "svg.hashsalt": "shoal",  # equal plots are equal bytes
    "svg.fonttype": "none",  # text stays text: it can be searched, selected and read aloud
    "text.parse_math": False,  # a name with dollar signs is a name, not a formula
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Plot:
    """A plot of a page."""

    svg: Markup
    """The SVG element, as a picture of its own."""
    caption: str
    """Its content in words, also for readers who do not see it."""


def render(folder: Path, template: str, **values: Any) -> str:
    """Return a page from a template of `folder` that extends page.html.j2. All values are escaped, except the SVG of plots."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = itertools.count(1)
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["figure"] = figure_text
    environment.filters["inline"] = lambda plot: inline(plot, next(numbers))
    page: str = environment.get_template(template).render(**values)
    return page


@contextmanager
def drawing() -> Iterator[None]:
    """Give plots the style of pages within the context, and make equal plots equal bytes."""
    with plt.rc_context(_STYLE):
        yield


def plot_of(figure: Any, caption: str) -> Plot:
    """Return a figure as a plot without a frame at the top and right, and close it."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatter):  # it would write powers of ten as formulas
                axis.set_major_formatter(
                    FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
                )
                axis.set_minor_formatter(NullFormatter())
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return Plot(Markup(buffer.getvalue()[buffer.getvalue().index("<svg") :]), caption)


def inline(plot: Plot, number: int) -> Markup:
    """Return the SVG of a plot as part of a page.

    Its ids begin with `number`, so that they are unique in the page; its colours follow the page's scheme; its caption is its
    label for screen readers; and it has a smallest width, below which its text could not be read.
    """
    svg = _TAG.sub(lambda tag: _tag_in_page(tag.group(), f"plot{number}-"), _NOT_SHOWN.sub("", str(plot.svg)))
    width = re.search(r'<svg[^>]*? width="([0-9.]+)pt"', svg)
    size = f"min-width:{_SMALLEST_PICTURE_WIDTH}"
    if width:
        wide = f"max({_SMALLEST_WIDTH},{_SMALLEST_SHARE * float(width[1]):.0f}pt)"
        size = f"width:{width[1]}pt;min-width:min({width[1]}pt,{wide})"
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(plot.caption)}" style="{size}"', 1))


def _tag_in_page(tag: str, prefix: str) -> str:
    """Return a tag of a plot with its ids and colours as a page needs them."""
    return _COLOUR.sub(_scheme_colour, _REFERENCE.sub(rf"\g<1>{prefix}", tag))


def _scheme_colour(match: re.Match[str]) -> str:
    """Return a colour as the page's variable for it; colours of data that are not the page's stay."""
    attribute, separator, colour = match.groups()
    if colour == INK:
        return f"{attribute}{separator}currentColor"
    return f"{attribute}{separator}var({_SCHEME[colour]})" if colour in _SCHEME else match.group()
