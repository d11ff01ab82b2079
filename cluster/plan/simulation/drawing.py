"""Plots of a simulation: events per second by workers, and the parts of a step."""

from dataclasses import fields

import numpy as np

from cluster.plan.simulation.report import PARTS
from cluster.plan.simulation.simulate import Simulation
from cluster.plan.simulation.step import StepSeconds
from trainer.pages.page import COLOURS, GREY, Plot, drawing, plot_of, plt

PART_COLOURS = ("#0b7285", "#e8590c", "#5f3dc4", "#3bc9db", "#ffa94d", "#adb5bd", "#c92a2a")


def plots(simulation: Simulation) -> list[Plot]:
    """Return the plots of a page."""
    with drawing():
        return [_speed(simulation), _parts(simulation)]


def _speed(simulation: Simulation) -> Plot:
    workers = np.asarray([point.workers for point in simulation.points], dtype=float)
    speed = np.asarray([point.events_per_second for point in simulation.points])
    kept = np.asarray([point.kept_events_per_second for point in simulation.points])
    figure, axes = plt.subplots(figsize=(8.0, 3.6))
    axes.plot(workers, speed[0] * workers / workers[0], color=GREY, linestyle="--", label="ideal")
    axes.plot(workers, speed, color=COLOURS[0], marker="o", label="steps")
    axes.plot(workers, kept, color=COLOURS[1], marker="s", label="kept after failures")
    axes.set_xscale("log", base=2)
    if speed.all():  # there are rankers without any event
        axes.set_yscale("log")
    axes.set_xticks(workers, [f"{int(number):,}" for number in workers])
    axes.set_xlabel("workers")
    axes.set_ylabel("input events per second")
    axes.legend(frameon=False)
    last = simulation.points[-1]
    caption = (
        f"Input events per second, {simulation.scaling} scaling: {last.efficiency:.0%} efficiency and {last.failures.goodput:.1%} "
        f"goodput with {last.workers:,} workers."
    )
    return plot_of(figure, caption)


def _parts(simulation: Simulation) -> Plot:
    places = np.arange(len(simulation.points))
    figure, axes = plt.subplots(figsize=(8.0, 3.6))
    below = np.zeros(places.size)
    for field, colour in zip(fields(StepSeconds), PART_COLOURS, strict=True):
        seconds = 1e3 * np.asarray([getattr(point.parts, field.name) for point in simulation.points])
        if seconds.any():
            axes.bar(places, seconds, 0.7, below, color=colour, label=PARTS[field.name])
            below += seconds
    axes.set_xticks(places, [f"{point.workers:,}" for point in simulation.points])
    axes.set_xlabel("workers")
    axes.set_ylabel("milliseconds")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return plot_of(figure, "Predicted time of a step by part; the parts follow one another.")
