"""What the reports of both tasks show alike: how many rows there were, and how training went."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from trainer.pages import page
from trainer.pages.page import Plot, plot_of


def count_rows(counts: dict[str, Any]) -> dict[str, str]:
    """The counts of a manifest, as text by name."""
    rejected, of_catalogue = counts.pop("rejected"), counts.pop("catalogue_rejected")
    rows = {name.replace("_", " "): f"{value:,}" for name, value in counts.items()}
    rows.update({f"rejected: {reason}": f"{number:,}" for reason, number in (rejected | of_catalogue).items()})
    return rows


def training_plots(
    history: list[dict[str, Any]], loss_axis: str, loss_caption: str, metrics: Mapping[str, str | None]
) -> list[Plot]:
    """Loss and validation metrics by step, as far as there are any. history: lines of metrics.jsonl; metrics: names and colours."""
    plots = []
    train = [(row["step"], row["loss"]) for row in history if row["kind"] == "train" and row["loss"] == row["loss"]]
    validation = [row for row in history if row["kind"] == "validation"]
    if train:
        figure, axes = plt.subplots(figsize=(7, 3))
        axes.plot(*zip(*train, strict=True), color=page.COLOURS[0], linewidth=0.8)
        axes.set(xlabel="step", ylabel=loss_axis)
        plots.append(plot_of(figure, loss_caption))
    shown = {name: colour for name, colour in metrics.items() if validation and name in validation[0]}
    if shown:
        figure, axes = plt.subplots(figsize=(7, 3))
        steps = [row["step"] for row in validation]
        for name, colour in shown.items():
            axes.plot(steps, [row.get(name, np.nan) for row in validation], "o-", ms=3, label=name, color=colour)
        axes.set(xlabel="step", ylabel="validation metric")
        axes.legend(frameon=False)
        plots.append(plot_of(figure, "Validation metrics during training."))
    return plots
