"""report.html: one self-contained page per evaluation, with plots as inline SVG."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from trainer.data.dataset.manifest import Counts
from trainer.evaluation.next_item.results import Results
from trainer.pages import page
from trainer.pages.page import Plot, plot_of
from trainer.pages.report_parts import count_rows, training_plots

MODEL, POPULARITY = page.COLOURS[0], page.GREY
_VALIDATED = {"ndcg@10": MODEL, "hr@10": page.COLOURS[1], "mrr": page.COLOURS[2]}


def render(
    results: Results,
    counts: Counts,
    config: dict[str, Any],
    history: list[dict[str, Any]],
    ranks: np.ndarray,
    popularity_ranks: np.ndarray,
) -> str:
    """The page. history: lines of metrics.jsonl; ranks: of all targets, 0 where not rankable."""
    with page.drawing():
        plots = [
            _hit_rate_plot(ranks, popularity_ranks, results.protocol["catalogue"]),
            _slice_plot(results),
            *training_plots(history, "training loss (nats per target)", "Training loss of logged steps.", _VALIDATED),
        ]
    return page.render(
        Path(__file__).parent,
        "report.html.j2",
        title=f"Shoal: evaluation on the {results.split} split",
        results=results,
        rows=_rows(results),
        plots=plots,
        slice_metrics=[name for name in ("hr@10", "ndcg@10", "mrr") if name in results.metrics],
        counts=count_rows(asdict(counts)),
        config=json.dumps(config, indent=2),
    )


def _rows(results: Results) -> list[dict[str, Any]]:
    rows = []
    for name, value in results.metrics.items():
        bounds, baseline = results.ci95.get(name), results.baselines["popularity"][name]
        rows.append(
            {
                "name": name,
                "model": value,
                "interval": f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else "",
                "popularity": baseline,
                "ratio": f"{value / baseline:.2f}x" if baseline else "",
            }
        )
    return rows


def _hit_rate_plot(ranks: np.ndarray, popularity_ranks: np.ndarray, catalogue: int) -> Plot:
    """Share of targets within the first K, for every K."""
    figure, axes = plt.subplots(figsize=(7, 3.6))
    ks = np.unique(np.geomspace(1, max(2, catalogue), 200).astype(np.int64))
    for name, values, colour in (("model", ranks, MODEL), ("popularity", popularity_ranks, POPULARITY)):
        ordered = np.sort(values[values > 0])
        axes.plot(ks, np.searchsorted(ordered, ks, side="right") / max(1, values.size), label=name, color=colour)
    axes.set(xscale="log", xlabel="K (places in the ranked catalogue)", ylabel="share of targets found", ylim=(0, 1))
    axes.legend(frameon=False)
    return plot_of(figure, "How far down the ranked catalogue the held-out targets lie.")


def _slice_plot(results: Results) -> Plot:
    metric = "ndcg@10" if "ndcg@10" in results.metrics else "mrr"
    figure, axes = plt.subplots(figsize=(7, 3.2))
    names = {"history_length": "history of", "target_popularity": "target in"}
    labels = [f"{names[s['name']]}\n{s['value']}" for s in results.slices]
    values = np.asarray([s["metrics"][metric] for s in results.slices])
    bounds = np.asarray([s["ci95"][metric] for s in results.slices]).reshape(-1, 2)
    errors = np.maximum(0.0, [values - bounds[:, 0], bounds[:, 1] - values])
    axes.bar(range(len(labels)), values, yerr=errors, color=MODEL, capsize=3)
    axes.axhline(results.metrics[metric], color="#495057", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylabel(metric)
    return plot_of(figure, f"{metric} by slice, with 95 % intervals; the dashed line is the mean over all users.")
