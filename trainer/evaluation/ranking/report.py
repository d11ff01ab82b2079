"""report.html of an evaluation on impressions: one self-contained page, with plots as inline SVG, from files alone."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from trainer.data.dataset.manifest import Counts
from trainer.evaluation.ranking.day_results import DayResults
from trainer.evaluation.ranking.metrics import Judged, count_scores
from trainer.evaluation.ranking.names import BASELINES, METRICS, name_of
from trainer.evaluation.ranking.reliability import roc
from trainer.evaluation.ranking.results import RankingResults, read_scored
from trainer.pages import page
from trainer.pages.page import Plot, plot_of
from trainer.pages.report_parts import count_rows, training_plots

MODEL, OTHER = page.COLOURS[0], page.COLOURS[1]
_SLICE_METRICS = ("auc", "gauc", "calibration")
_DAY_METRICS = ("auc", "gauc", "ne", "logloss", "calibration")
_NAMES = {"history_length": "history", "item_impressions": "shown", "hour": "hour"}


def render(
    results: RankingResults,
    folder: Path,
    counts: Counts,
    config: dict[str, Any],
    history: list[dict[str, Any]],
    by_day: DayResults | None = None,
) -> str:
    """The page. folder: that of per_impression.parquet; history: lines of metrics.jsonl; by_day: where it was trained by days."""
    labels = tuple(results.labels)
    with page.drawing():
        plots = [plot for label in labels for plot in _plots_of(results, folder, label, labels)]
        validated = dict.fromkeys(name_of(metric, label, labels) for label in labels for metric in ("auc", "gauc"))
        day_plots = [_day_plot(by_day, label, labels) for label in labels] if by_day is not None else []
        plots += training_plots(history, "training loss", "Training loss of logged steps, per impression.", validated)
    names = [name_of(metric, label, labels) for label in labels for metric in _SLICE_METRICS]
    return page.render(
        Path(__file__).parent,
        "report.html.j2",
        title=f"Shoal: evaluation on the {results.split} split",
        results=results,
        rows=[_row(results, name_of(metric, label, labels)) for label in labels for metric in METRICS],
        plots=plots,
        slice_metrics=names,
        slices=[{**entry, "cells": [_cell(entry, name) for name in names]} for entry in results.slices],
        day_names=[name_of(metric, label, labels) for label in labels for metric in _DAY_METRICS],
        day_rows=_day_rows(by_day, labels) if by_day is not None else [],
        day_plots=day_plots,
        counts=count_rows(asdict(counts)),
        config=json.dumps(config, indent=2),
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _row(results: RankingResults, name: str) -> dict[str, Any]:
    bounds = results.ci95.get(name)
    return {
        "name": name,
        "model": _figure(results.metrics[name]),
        "interval": f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else "",
        "baselines": [_figure(values[name]) for values in results.baselines.values()],
    }


def _cell(entry: dict[str, Any], name: str) -> tuple[str, str]:
    bounds = entry["ci95"].get(name)
    return _figure(entry["metrics"][name]), f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""


def _day_rows(by_day: DayResults, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row per day, and the mean: its first moment, the impressions of the first label, and of each metric (model, popularity)."""
    names = [name_of(metric, label, labels) for label in labels for metric in _DAY_METRICS]
    total = sum(day["impressions"][labels[0]] for day in by_day.days)
    rows = [(day["begins"], day["impressions"][labels[0]], day) for day in by_day.days]
    return [
        {
            "begins": begins,
            "impressions": count,
            "cells": [(_figure(of["model"][name]), _figure(of["popularity"][name])) for name in names],
        }
        for begins, count, of in [*rows, ("mean, weighted by impressions", total, by_day.mean)]
    ]


def _day_plot(by_day: DayResults, label: str, labels: tuple[str, ...]) -> Plot:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
    places = range(len(by_day.days))
    for axes, metric in ((left, "auc"), (right, "ne")):
        name = name_of(metric, label, labels)
        for source, colour in (("model", MODEL), ("popularity", page.GREY)):
            values = [np.nan if day[source][name] is None else day[source][name] for day in by_day.days]
            axes.plot(places, values, "o-", ms=3, linewidth=0.8, label=source, color=colour)
        shown = places[:: max(1, len(places) // 8)]
        axes.set_xticks(shown, [by_day.days[place]["begins"] for place in shown], fontsize=7, rotation=30, ha="right")
        axes.set_ylabel(name)
    left.legend(frameon=False)
    return plot_of(figure, f"{label}: each day, evaluated before the model is trained on it.")


def _plots_of(results: RankingResults, folder: Path, label: str, labels: tuple[str, ...]) -> list[Plot]:
    if not results.labels[label]["impressions"]:
        return []
    scored = read_scored(folder, label, labels)
    plots = [_distribution_plot(scored, label)]
    if results.reliability[label]:
        plots.insert(0, _reliability_plot(results.reliability[label], label))
    auc = results.metrics[name_of("auc", label, labels)]
    if auc is not None:
        curves = {"model": scored} | {name: read_scored(folder, label, labels, name) for name in BASELINES}
        plots += [_roc_plot(curves, label), _slice_plot(results, name_of("auc", label, labels), auc)]
    return plots


def _reliability_plot(groups: list[dict[str, Any]], label: str) -> Plot:
    figure, axes = plt.subplots(figsize=(4.6, 4.2))
    predicted = np.asarray([group["predicted"] for group in groups])
    observed = np.asarray([group["observed"] for group in groups])
    bounds = np.asarray([group["interval"] for group in groups])
    largest = 1.05 * max(float(predicted.max()), float(bounds.max()))
    axes.plot([0, largest], [0, largest], color=page.GREY, linewidth=0.8, linestyle="--")
    errors = np.maximum(0.0, [observed - bounds[:, 0], bounds[:, 1] - observed])
    axes.errorbar(predicted, observed, yerr=errors, fmt="o-", ms=3, linewidth=0.8, capsize=2, color=MODEL)
    axes.set(xlabel="mean predicted probability", ylabel="rate of positives", xlim=(0, largest), ylim=(0, largest))
    return plot_of(
        figure,
        f"{label}: impressions in groups of like predictions, with 95 % intervals of the rate. On the dashed line a "
        "probability means what it says.",
    )


def _distribution_plot(scored: Judged, label: str) -> Plot:
    figure, axes = plt.subplots(figsize=(7, 2.8))
    edges = np.linspace(0, max(1e-6, float(np.nanmax(scored.scores))), 61)
    for name, chosen, colour in (("negative", ~scored.positive, page.GREY), ("positive", scored.positive, MODEL)):
        height, _ = np.histogram(scored.scores[chosen], edges, weights=scored.weight[chosen])
        axes.stairs(height / max(1.0, height.sum()), edges, label=name, color=colour)
    axes.set(xlabel="predicted probability", ylabel="share of impressions")
    axes.legend(frameon=False)
    return plot_of(figure, f"{label}: what was predicted of the impressions that became positive, and of the others.")


def _roc_plot(curves: dict[str, Judged], label: str) -> Plot:
    figure, axes = plt.subplots(figsize=(4.6, 4.2))
    colours = (MODEL, page.GREY, page.COLOURS[2], OTHER)
    for (name, scored), colour in zip(curves.items(), colours, strict=True):
        axes.plot(*roc(count_scores(scored)), label=name, color=colour, linewidth=1.2 if name == "model" else 0.8)
    axes.plot([0, 1], [0, 1], color=page.GREY, linewidth=0.5, linestyle="--")
    axes.set(xlabel="share of negatives above the threshold", ylabel="share of positives", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)
    return plot_of(figure, f"{label}: ROC curves; auc is the area below.")


def _slice_plot(results: RankingResults, metric: str, of_all: float) -> Plot:
    entries = [entry for entry in results.slices if entry["metrics"][metric] is not None]
    figure, axes = plt.subplots(figsize=(9, 3.2))
    values = np.asarray([entry["metrics"][metric] for entry in entries])
    known = [entry["ci95"].get(metric, [value, value]) for entry, value in zip(entries, values, strict=True)]
    bounds = np.asarray(known).reshape(-1, 2)
    errors = np.maximum(0.0, [values - bounds[:, 0], bounds[:, 1] - values])
    axes.errorbar(range(len(entries)), values, yerr=errors, fmt="o", ms=4, capsize=3, color=MODEL)
    axes.axhline(of_all, color="#495057", linewidth=0.8, linestyle="--")
    names = [f"{_NAMES[entry['name']]}\n{entry['value']}" for entry in entries]
    axes.set_xticks(range(len(names)), names, fontsize=7)
    axes.set_ylabel(metric)
    return plot_of(
        figure,
        f"{metric} with 95 % intervals by length of the history, by how often the item was shown in training, and by hour of the "
        "day (UTC); the dashed line is all impressions.",
    )
