"""report.html of a next-item model: one self-contained page per evaluation, with plots as inline SVG, from files alone."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest
from trainer.evaluation.metric import headline_names
from trainer.evaluation.next_item.baselines.notes import strongest_baseline
from trainer.evaluation.next_item.metrics import METRICS
from trainer.evaluation.next_item.results import Results, slice_metric, table_names
from trainer.evaluation.report_sections import card_summary, plan_rows, timing_rows, version_rows, warnings_of
from trainer.evaluation.run_header import explanations, header_rows, protocol_rows, setting_rows
from trainer.evaluation.training_cost import cost_section
from trainer.pages import page
from trainer.pages.page import Plot, plot_of
from trainer.pages.report_parts import count_rows, training_plots, worst_row
from trainer.pages.text import figure_text, interval_text

MODEL = page.COLOURS[0]
_OTHERS = (page.GREY, page.COLOURS[1], page.COLOURS[2])  # of baselines in plots, together with _LINES
_MIN_PLOTTED = 20  # users of a slice in the plot
_LINES = ("-", "--", "-.", ":")
_NAMES = {
    "history_length": "events in the history",
    "target_popularity": "popularity of the target",
    "target_training_events": "training events of the target",
    "user_training_events": "training events of the user",
    "time_since_last_event": "time since the last event",
}


@dataclass(frozen=True)
class ReportInput:
    """The input of a report."""

    results: Results
    """Results that it shows."""
    job: Job
    """The evaluated run."""
    manifest: Manifest
    """Manifest of its dataset."""
    folder: Path
    """Folder of the evaluation."""
    history: list[dict[str, Any]]
    """Lines of the run's metrics.jsonl."""
    target_ranks: dict[str, np.ndarray]
    """Number of targets at each rank, from rank 0 (cannot be ranked), by "model" and by baseline."""
    examples: list[dict[str, Any]]
    """Example users (results.examples_of)."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Times of the evaluation (timing.json)."""


def render(report: ReportInput) -> str:
    """Return the page."""
    results, job, manifest = report.results, report.job, report.manifest
    folder, history = report.folder, report.history
    summary = card_summary(job, manifest, folder)
    headlines = headline_names(METRICS, results.metrics)
    colours = dict(zip(headlines, page.COLOURS, strict=False))
    with page.drawing():
        plots = [
            _hit_rate_plot(report.target_ranks, results.protocol["catalogue"]),
            _slice_plot(results, slice_metric(results.metrics)),
            *training_plots(history, "training loss (nats per target)", "Training loss of logged steps.", colours),
        ]
    names, left_out = table_names(results)
    return page.render(
        Path(__file__).parent,
        "report.html.j2",
        title=f"Evaluation of {job.run_dir.name} on the {results.split} split",
        header=header_rows(job, manifest, results.checkpoint, folder, history),
        results=results,
        tiles=[_tile(results, name) for name in headlines],
        rows=[_row(results, name) for name in names],
        baselines=_baseline_terms(results),
        left_out=left_out,
        plots=plots,
        **_slice_section(results, headlines),
        warnings=warnings_of(history, summary, _beaten_by(results, headlines)),
        card=summary,
        plan=plan_rows(job),
        **cost_section(folder, job, history),
        times=timing_rows(report.seconds, results.num_users),
        versions=version_rows(),
        protocol_text=protocol_text(results),
        examples=report.examples,
        explanations=explanations(METRICS, results.metrics),
        protocol=protocol_rows(results.protocol, manifest),
        counts=list(count_rows(asdict(manifest.counts)).items()),
        settings=setting_rows(job),
    )


def _tile(results: Results, name: str) -> dict[str, str]:
    strongest = strongest_baseline(results.baselines, name)
    note = ""
    if strongest is not None:
        best = results.baselines[strongest][name]
        ratio = f", {results.metrics[name] / best:.2f}x" if best else ""
        note = f"best baseline: {strongest} {figure_text(best)}{ratio}"
    return {
        "name": name,
        "value": figure_text(results.metrics[name]),
        "interval": interval_text(results.ci95.get(name)),
        "note": note,
    }


def _row(results: Results, name: str) -> dict[str, Any]:
    ordered = any(metric.larger_is_better for metric in METRICS if metric.matches(name))
    strongest = strongest_baseline(results.baselines, name) if ordered else None
    return {
        "name": name,
        "model": figure_text(results.metrics[name]),
        "interval": interval_text(results.ci95.get(name)),
        "baselines": [
            {"value": figure_text(values[name]), "is_best": baseline == strongest}
            for baseline, values in results.baselines.items()
        ],
    }


def _baseline_terms(results: Results) -> list[tuple[str, str]]:
    """Return the name of each baseline with its description, then of those that were left out with the reason."""
    used = [(name, results.baseline_notes.get("used", {}).get(name, "")) for name in results.baselines]
    left_out = [(name, f"left out: {reason}") for name, reason in results.baseline_notes.get("left_out", {}).items()]
    return used + left_out


def _slice_section(results: Results, headlines: list[str]) -> dict[str, Any]:
    """Return what the template shows of slices."""
    worst = results.worst_slices.get("slices", [])
    return {
        "slice_metrics": headlines,
        "slices": [_slice_row(entry, headlines) for entry in results.slices if entry["name"] in _NAMES],
        "slices_of_features": _by_feature(results, headlines),
        "worst": results.worst_slices,
        "worst_rows": [worst_row(entry, _NAMES.get(entry["name"], entry["name"])) for entry in worst],
    }


def _slice_row(entry: dict[str, Any], names: list[str]) -> dict[str, Any]:
    cells = [(figure_text(entry["metrics"][name]), interval_text(entry["ci95"].get(name))) for name in names]
    return {**entry, "name": _NAMES.get(entry["name"], entry["name"]), "cells": cells}


def _by_feature(results: Results, headlines: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of slices by features, by the name of the feature."""
    features: dict[str, list[dict[str, Any]]] = {}
    for entry in results.slices:
        if entry["name"] not in _NAMES:
            features.setdefault(entry["name"], []).append(_slice_row(entry, headlines))
    return features


def _beaten_by(results: Results, headlines: list[str]) -> list[tuple[str, str]]:
    """Return the headline metrics in which a baseline is better than the model, each with the strongest such baseline."""
    strongest = [(name, strongest_baseline(results.baselines, name)) for name in headlines]
    return [
        (name, baseline)
        for name, baseline in strongest
        if baseline is not None and results.baselines[baseline][name] > results.metrics[name]
    ]


def protocol_text(results: Results) -> str:
    """Return the protocol as one paragraph."""
    protocol = results.protocol
    part = "training part" if results.split == "validation" else "training and validation parts"
    targets = {"first": "the first held-out event", "all": "all held-out events as one set"}
    masked = {
        "masked": "Items that the user has seen are left out of the lists.",
        "ranked": "Items that the user has seen stay in the lists.",
    }
    sentences = [
        f"{results.num_users:,} users with held-out events in the {results.split} split, and at least one event before it, are "
        f"evaluated; the targets of a user are {targets.get(protocol.get('targets', 'all'), protocol.get('targets'))}.",
        f"The model receives the user's history up to the split: the {part}.",
        f"It ranks the {protocol.get('candidates', 'full catalogue')} of {protocol['catalogue']:,} items, never a sample; equal "
        "scores are ordered by item id.",
        masked.get(protocol.get("seen_items", ""), ""),
        f"{results.num_targets_not_rankable:,} of {results.num_targets:,} targets cannot be ranked and count as missed."
        if results.num_targets_not_rankable
        else "",
        "Baselines are ranked for the same users with the same masks, targets and candidates.",
        "Intervals are 95 % confidence intervals over users.",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _hit_rate_plot(target_ranks: dict[str, np.ndarray], catalogue: int) -> Plot:
    """Draw the share of targets within the first K places, for every K."""
    figure, axes = plt.subplots(figsize=(7, 3.6))
    ks = np.unique(np.geomspace(1, max(2, catalogue), 200).astype(np.int64))
    for number, (name, values) in enumerate(target_ranks.items(), start=-1):  # the model is the first
        found = np.cumsum(values) - values[0]  # rank 0 is no rank
        shares = found[np.minimum(ks, values.size - 1)] / max(1, values.sum())
        if name == "model":
            axes.plot(ks, shares, label=name, color=MODEL, linewidth=1.8, zorder=3)
        else:
            axes.plot(
                ks,
                shares,
                label=name,
                color=_OTHERS[number % len(_OTHERS)],
                linewidth=1.0,
                linestyle=_LINES[number % len(_LINES)],
            )
    axes.set(xscale="log", xlabel="K (places in the ranked catalogue)", ylabel="share of targets found", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)
    return plot_of(figure, "Share of held-out targets among the first K places of the ranked catalogue, for every K.")


def _slice_plot(results: Results, metric: str) -> Plot:
    # The intervals of smaller slices would fill the plot; the table has them.
    entries = [e for e in results.slices if e["name"] in _NAMES and e["num_users"] >= _MIN_PLOTTED]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.27 * len(entries)))
    places = -np.arange(len(entries))
    values = np.asarray([entry["metrics"][metric] for entry in entries])
    bounds = np.asarray([entry["ci95"][metric] for entry in entries]).reshape(-1, 2)
    errors = np.maximum(0.0, [values - bounds[:, 0], bounds[:, 1] - values])
    axes.errorbar(values, places, xerr=errors, fmt="o", ms=4, capsize=3, color=MODEL)
    axes.axvline(results.metrics[metric], color=page.INK, linewidth=0.8, linestyle="--")
    axes.set_yticks(places, [f"{_NAMES[entry['name']]}: {entry['value']}" for entry in entries], fontsize=8)
    axes.set_xlabel(metric)
    return plot_of(
        figure,
        f"{metric} by slice of at least {_MIN_PLOTTED} users, with 95 % intervals; the dashed line is the mean over all users.",
    )
