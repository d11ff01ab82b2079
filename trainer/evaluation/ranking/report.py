"""report.html of a ranking model: one self-contained page per evaluation, with plots as inline SVG, from files alone."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest
from trainer.evaluation.metric import headline_names
from trainer.evaluation.ranking.day_results import DayResults
from trainer.evaluation.ranking.judged import Judged
from trainer.evaluation.ranking.metrics import METRICS
from trainer.evaluation.ranking.names import BASELINES, name_of
from trainer.evaluation.ranking.reliability import roc
from trainer.evaluation.ranking.results import RankingResults
from trainer.evaluation.ranking.tables import read_scored
from trainer.evaluation.report_sections import card_summary, plan_rows, version_rows, warnings_of
from trainer.evaluation.run_header import explanations, header_rows, protocol_rows, setting_rows
from trainer.evaluation.spooled import blocks
from trainer.evaluation.training_cost import cost_section
from trainer.pages import page
from trainer.pages.page import Plot, plot_of
from trainer.pages.report_parts import count_rows, training_plots, worst_row
from trainer.pages.text import figure_text, interval_text

MODEL, OTHER = page.COLOURS[0], page.COLOURS[1]
_SLICE_METRICS = ("auc", "gauc", "calibration")
_SLICE_NAMES = {
    "history_length": "events in the history",
    "item_impressions": "training impressions of the item",
    "user_impressions": "training impressions of the user",
    "time_since_last_event": "time since the last event",
    "hour": "hour of the day (UTC)",
}


def render(
    results: RankingResults,
    job: Job,
    manifest: Manifest,
    folder: Path,
    history: list[dict[str, Any]],
    by_day: DayResults | None,
    examples: list[dict[str, Any]],
) -> str:
    """Return the page.

    Args:
        results: what it shows.
        job: the evaluated run.
        manifest: its dataset's.
        folder: the folder of the evaluation, with per_impression.parquet.
        history: the lines of the run's metrics.jsonl.
        by_day: the results of daily training; None if the run was trained in epochs.
        examples: example users (example_users.examples_of).
    """
    labels = tuple(results.labels)
    summary = card_summary(job, manifest, folder)
    headlines = headline_names(METRICS, results.metrics)
    with page.drawing():
        plots = [plot for label in labels for plot in _plots_of(results, folder, label, labels)]
        validated = dict.fromkeys(name for name in headlines if not name.startswith("ne"))
        day_plots = [_day_plot(by_day, label, labels) for label in labels] if by_day is not None else []
        plots += training_plots(history, "training loss", "Training loss of logged steps, per impression.", validated)
    names = [name_of(metric, label, labels) for label in labels for metric in _SLICE_METRICS]
    return page.render(
        Path(__file__).parent,
        "report.html.j2",
        title=f"Evaluation of {job.run_dir.name} on the {results.split} split",
        header=header_rows(job, manifest, results.checkpoint, folder, history),
        results=results,
        tiles=[_tile(results, name) for name in headlines],
        rows=[_row(results, name_of(metric.name, label, labels)) for label in labels for metric in METRICS],
        plots=plots,
        slice_metrics=names,
        slices=[_slice_row(entry, names) for entry in results.slices if entry["name"] in _SLICE_NAMES],
        slices_of_features=_by_feature(results, names),
        worst=results.worst_slices,
        worst_rows=[worst_row(entry, _worst_name(entry)) for entry in results.worst_slices.get("slices", [])],
        day_names=[name_of(metric.name, label, labels) for label in labels for metric in METRICS],
        day_rows=_day_rows(by_day, labels) if by_day is not None else [],
        day_plots=day_plots,
        examples=examples,
        explanations=explanations(METRICS, results.metrics),
        warnings=warnings_of(history, summary, _beaten_by(results, headlines)),
        card=summary,
        plan=plan_rows(job),
        **cost_section(folder, job, history),
        versions=version_rows(),
        protocol_text=protocol_text(results),
        protocol=protocol_rows(results.protocol, manifest),
        counts=list(count_rows(asdict(manifest.counts)).items()),
        settings=setting_rows(job),
    )


def _tile(results: RankingResults, name: str) -> dict[str, str]:
    popularity = figure_text(results.baselines["popularity"][name])
    return {
        "name": name,
        "value": figure_text(results.metrics[name]) or "undefined",
        "interval": interval_text(results.ci95.get(name)),
        "note": f"popularity {popularity}" if popularity else "",
    }


def _row(results: RankingResults, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": figure_text(results.metrics[name]),
        "interval": interval_text(results.ci95.get(name)),
        "baselines": [figure_text(values[name]) for values in results.baselines.values()],
    }


def _beaten_by(results: RankingResults, headlines: list[str]) -> list[tuple[str, str]]:
    """Return the headline metrics in which a baseline is better than the model, each with the strongest such baseline."""
    beaten = []
    for name in headlines:
        value = results.metrics[name]
        larger = next(metric.larger_is_better for metric in METRICS if metric.matches(name))
        if value is None or larger is None:
            continue
        sign = 1.0 if larger else -1.0
        known = {baseline: of[name] for baseline, of in results.baselines.items()}
        excess = {baseline: sign * (other - value) for baseline, other in known.items() if other is not None}
        strongest = max(excess, key=lambda baseline: excess[baseline], default=None)
        if strongest is not None and excess[strongest] > 0.0:
            beaten.append((name, strongest))
    return beaten


def protocol_text(results: RankingResults) -> str:
    """Return the protocol as one paragraph."""
    protocol = results.protocol
    rate = protocol.get("negative_sampling_rate", 1.0)
    sentences = [
        f"The model scores {results.num_targets:,} impressions of {results.num_users:,} users in the {results.split} split, each "
        f"from the {protocol.get('history', 'events strictly before each impression')}.",
        "Impressions of the validation part are history at test time, and nothing is trained on either split.",
        "Scores that are equal count half in auc and gauc.",
        f"Impressions without any positive label were sampled at a rate of {rate:g}, and have the weight {1 / rate:g} here."
        if rate != 1.0
        else "",
        "Baselines predict training rates for the same impressions. Intervals are 95 % confidence intervals over users.",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _slice_row(entry: dict[str, Any], names: list[str]) -> dict[str, Any]:
    cells = [(figure_text(entry["metrics"][name]), interval_text(entry["ci95"].get(name))) for name in names]
    return {**entry, "name": _SLICE_NAMES.get(entry["name"], entry["name"]), "cells": cells}


def _by_feature(results: RankingResults, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of slices by features, by the name of the feature."""
    features: dict[str, list[dict[str, Any]]] = {}
    for entry in results.slices:
        if entry["name"] not in _SLICE_NAMES:
            features.setdefault(entry["name"], []).append(_slice_row(entry, names))
    return features


def _worst_name(entry: dict[str, Any]) -> str:
    """Return the name of a slice, after the metric if there is one for each label."""
    name = _SLICE_NAMES.get(entry["name"], entry["name"])
    return f"{entry['metric']}, {name}" if "metric" in entry else name


def _day_rows(by_day: DayResults, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return a row per day, and one of the means.

    A row holds the day's first moment, the impressions of the first label, and (model, popularity) of each metric.
    """
    names = [name_of(metric.name, label, labels) for label in labels for metric in METRICS]
    total = sum(day["impressions"][labels[0]] for day in by_day.days)
    rows = [(day["begins"], day["impressions"][labels[0]], day) for day in by_day.days]
    return [
        {
            "begins": begins,
            "impressions": count,
            "cells": [(figure_text(of["model"][name]), figure_text(of["popularity"][name])) for name in names],
        }
        for begins, count, of in [*rows, ("mean, weighted by impressions", total, by_day.mean)]
    ]


def _day_plot(by_day: DayResults, label: str, labels: tuple[str, ...]) -> Plot:
    figure, panels = plt.subplots(1, 2, figsize=(9, 3))
    places = range(len(by_day.days))
    for axes, metric in zip(panels, ("auc", "ne"), strict=True):
        name = name_of(metric, label, labels)
        for source, colour in (("model", MODEL), ("popularity", page.GREY)):
            values = [np.nan if day[source][name] is None else day[source][name] for day in by_day.days]
            axes.plot(places, values, "o-", ms=3, linewidth=0.8, label=source, color=colour)
        shown = places[:: max(1, len(places) // 8)]
        axes.set_xticks(shown, [by_day.days[place]["begins"] for place in shown], fontsize=8, rotation=30, ha="right")
        axes.set_ylabel(name)
    panels[0].legend(frameon=False)
    return plot_of(figure, f"{label}: each day, evaluated before the model is trained on it.")


def _plots_of(results: RankingResults, folder: Path, label: str, labels: tuple[str, ...]) -> list[Plot]:
    """Draw what there is of a label: nothing without impressions, no ROC curve without both classes."""
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
        f"{label}: rate of positives in groups of similar predictions, with 95 % intervals. On the dashed line predictions are "
        "calibrated.",
    )


def _distribution_plot(scored: Judged, label: str) -> Plot:
    figure, axes = plt.subplots(figsize=(7, 2.8))
    parts = [scored.take(block) for block in blocks(scored.scores.size)]
    edges = np.linspace(0, max(1e-6, *(float(np.fmax.reduce(part.scores)) for part in parts)), 61)
    for name, outcome, colour in (("negative", False, page.GREY), ("positive", True, MODEL)):
        height = np.zeros(edges.size - 1)
        for part in parts:
            inside = part.positive == outcome
            height += np.histogram(part.scores[inside], edges, weights=part.weight[inside])[0]
        axes.stairs(height / max(1.0, height.sum()), edges, label=name, color=colour)
    axes.set(xlabel="predicted probability", ylabel="share of impressions")
    axes.legend(frameon=False)
    return plot_of(figure, f"{label}: distribution of the predictions of positive and of negative impressions.")


def _roc_plot(curves: dict[str, Judged], label: str) -> Plot:
    figure, axes = plt.subplots(figsize=(4.6, 4.2))
    colours = (MODEL, page.GREY, page.COLOURS[2], OTHER)
    for (name, scored), colour in zip(curves.items(), colours, strict=True):
        axes.plot(*roc(scored.counts), label=name, color=colour, linewidth=1.2 if name == "model" else 0.8)
    axes.plot([0, 1], [0, 1], color=page.GREY, linewidth=0.5, linestyle="--")
    axes.set(xlabel="share of negatives above the threshold", ylabel="share of positives", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)
    return plot_of(figure, f"{label}: ROC curves; auc is the area below a curve.")


def _slice_plot(results: RankingResults, metric: str, of_all: float) -> Plot:
    named = [entry for entry in results.slices if entry["name"] in _SLICE_NAMES]
    entries = [entry for entry in named if entry["metrics"][metric] is not None]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.27 * len(entries)))
    places = -np.arange(len(entries))
    values = np.asarray([entry["metrics"][metric] for entry in entries])
    known = [entry["ci95"].get(metric, [value, value]) for entry, value in zip(entries, values, strict=True)]
    bounds = np.asarray(known).reshape(-1, 2)
    errors = np.maximum(0.0, [values - bounds[:, 0], bounds[:, 1] - values])
    axes.errorbar(values, places, xerr=errors, fmt="o", ms=4, capsize=3, color=MODEL)
    axes.axvline(of_all, color=page.INK, linewidth=0.8, linestyle="--")
    axes.set_yticks(places, [f"{_SLICE_NAMES[entry['name']]}: {entry['value']}" for entry in entries], fontsize=8)
    axes.set_xlabel(metric)
    return plot_of(figure, f"{metric} by slice, with 95 % intervals; the dashed line is all impressions.")
