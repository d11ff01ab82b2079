"""Parts that the reports of both tasks share: counts of rows, worst slices, and curves of training."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from trainer.pages import page
from trainer.pages.page import Plot, plot_of
from trainer.pages.text import figure_text


def count_rows(counts: dict[str, Any]) -> dict[str, str]:
    """Return the counts of a manifest as text by name."""
    rejected = counts.pop("rejected")
    rejected_of_catalogue = counts.pop("catalogue_rejected")
    rows = {name.replace("_", " ").replace("num ", ""): f"{value:,}" for name, value in counts.items()}
    rows.update({f"rejected: {reason}": f"{number:,}" for reason, number in (rejected | rejected_of_catalogue).items()})
    return rows


def worst_row(entry: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a slice that is worse than all others as text, under a name (trainer.evaluation.slices.name_worst)."""
    return {
        **entry,
        "name": name,
        "mean": figure_text(entry["mean"]),
        "mean_of_others": figure_text(entry["mean_of_others"]),
        "deficit": f"{1 - entry['mean'] / entry['mean_of_others']:.0%}" if entry["mean_of_others"] else "",
        "p_value": f"{entry['p_value']:.1g}",
    }


def training_plots(
    history: list[dict[str, Any]], loss_axis: str, loss_caption: str, metrics: Mapping[str, str | None]
) -> list[Plot]:
    """Draw loss and validation metrics by step, as far as there are any.

    Args:
        history: the lines of metrics.jsonl.
        loss_axis: the label of the loss.
        loss_caption: the caption of its plot.
        metrics: names of validation metrics with their colours; None lets matplotlib choose.
    """
    plots = []
    train = [(row["step"], row["loss"]) for row in history if row["kind"] == "train" and row["loss"] == row["loss"]]
    validation = [row for row in history if row["kind"] == "validation"]
    if train:
        figure, axes = plt.subplots(figsize=(7, 3))
        axes.plot(*zip(*train, strict=True), color=page.COLOURS[0], linewidth=0.8)
        axes.set(xlabel="step", ylabel=loss_axis)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        plots.append(plot_of(figure, loss_caption))
    shown = {name: colour for name, colour in metrics.items() if validation and name in validation[0]}
    if shown:
        figure, axes = plt.subplots(figsize=(7, 3))
        steps = [row["step"] for row in validation]
        for name, colour in shown.items():
            axes.plot(steps, [row.get(name, np.nan) for row in validation], "o-", ms=3, label=name, color=colour)
        axes.set(xlabel="step", ylabel="validation metric")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        plots.append(plot_of(figure, "Validation metrics during training."))
    return plots
