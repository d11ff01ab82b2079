"""What the HTML pages share: one look, one way to render, and plots as inline SVG, so that a page needs nothing else."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup

matplotlib.use("svg")
from matplotlib import pyplot as plt

COLOURS = ("#0b7285", "#e8590c", "#5f3dc4")
GREY = "#adb5bd"


@dataclass(frozen=True)
class Plot:
    """An SVG element and what it shows."""

    svg: Markup
    caption: str


def render(folder: Path, template: str, **values: Any) -> str:
    """A template of `folder`, which extends page.html.j2. All values are escaped, the SVG of plots aside."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["figure"] = lambda number: f"{number:.4f}"
    page: str = environment.get_template(template).render(**values)
    return page


@contextmanager
def drawing() -> Iterator[None]:
    """Plots are drawn within, so that equal plots are equal bytes, and a name with dollar signs is a name and no formula."""
    with plt.rc_context({"svg.hashsalt": "shoal", "text.parse_math": False}):
        yield


def plot_of(figure: Any, caption: str) -> Plot:
    """The figure without a frame at the top and right; it is closed."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":  # its powers of ten are formulas
                for label in (*axis.get_majorticklabels(), *axis.get_minorticklabels()):
                    label.set_parse_math(True)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return Plot(Markup(buffer.getvalue()[buffer.getvalue().index("<svg") :]), caption)
