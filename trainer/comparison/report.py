"""compare.html: one self-contained page of a comparison, with plots as inline SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from trainer.comparison import verdicts
from trainer.comparison.comparison import Comparison, Pair
from trainer.comparison.differences import LEVEL, Difference
from trainer.comparison.sides import Cost, RunFacts, changed_settings
from trainer.comparison.slices import SliceDifference
from trainer.pages import page
from trainer.pages.page import Plot, plot_of
from trainer.pages.text import duration_text, figure_text, setting_text
from trainer.settings import flatten
from trainer.tasks.metrics import METRICS, metric_of

_COLOURS = {
    "better": page.COLOURS[0],
    "worse": page.COLOURS[1],
    "differs": page.COLOURS[2],
    "unclear": page.FAINT_INK,
    "none": page.FAINT_INK,
}
_ROW_INCHES = 0.3

METRIC_HEADINGS = ("metric", "verdict", "reference", "other", "difference", "95 % interval", "relative", "p")
USER_HEADINGS = ("metric", "users better", "equal", "worse", "p of counts", "effect size", "detectable")


def render(comparison: Comparison) -> str:
    """Return the page."""
    names = [side.title for side in comparison.sides]
    explained = [m for m in METRICS[comparison.task] if any(m.matches(one.metric) for one in _first(comparison))]
    with page.drawing():
        pairs = [_pair_values(pair, comparison.headlines) for pair in comparison.pairs]
    return page.render(
        Path(__file__).parent,
        "compare.html.j2",
        title="Comparison: " + ", ".join(names),
        header=_header(comparison),
        pairs=pairs,
        metric_headings=METRIC_HEADINGS,
        user_headings=USER_HEADINGS,
        slice_metrics=comparison.headlines,
        notes=verdicts.notes(comparison),
        run_headings=("run", "side", "seed", "checkpoint", "training", "steps", "speed"),
        runs=[_run_row(side.title, facts) for side in comparison.sides for facts in side.runs],
        side_names=names,
        settings=[
            (name, ["-" if value is None else setting_text(value) for value in values])
            for name, values in changed_settings(comparison.sides)
        ],
        unpaired=[
            (one.metric, one.reason, [figure_text(value) for value in one.values]) for one in comparison.unpaired
        ],
        protocol=[
            (name.replace("_", " "), setting_text(value)) for name, value in flatten(comparison.protocol).items()
        ],
        explanations=[(metric.placeholder, metric.explanation) for metric in explained],
    )


def _first(comparison: Comparison) -> tuple[Difference, ...]:
    return comparison.pairs[0].differences


def _header(comparison: Comparison) -> list[tuple[str, str]]:
    """Return names and values of the header."""
    reference, *others = [side.title for side in comparison.sides]
    left_out = f" ({comparison.num_left_out:,} left out)" if comparison.num_left_out else ""
    return [
        ("Reference", reference),
        ("Compared", ", ".join(others)),
        ("Task and split", f"{comparison.task}, {comparison.split}"),
        ("Users", f"{comparison.num_users:,}, the same for all{left_out}"),
        ("Tests", f"{comparison.num_tests}, corrected together (Holm)"),
    ]


def _pair_values(pair: Pair, headlines: Sequence[str]) -> dict[str, Any]:
    """Return a pair as the template shows it."""
    reference, other = pair.reference.title, pair.other.title
    plots = [_metric_plot(pair)]
    if pair.slices:
        plots.append(_slice_plot(pair, _main_metric(headlines)))
    by_slice: dict[str, dict[str, SliceDifference]] = {}
    for part in pair.slices:
        by_slice.setdefault(part.title, {})[part.of.metric] = part
    return {
        "title": f"{other} compared with {reference}",
        "summary": verdicts.summary(pair),
        "tiles": [_tile(one) for one in pair.differences if one.metric in headlines],
        "statements": [
            *(verdicts.statement(one, reference, other) for one in pair.differences if one.metric in headlines),
            *filter(None, [verdicts.slice_verdict(pair)]),
        ],
        "rows": [_metric_row(one) for one in pair.differences],
        "user_rows": [_user_row(one) for one in pair.differences],
        "seed_rows": [
            (one.metric, f"{one.difference:+.4f}", verdicts.signed_interval(one.over_seeds))
            for one in pair.differences
            if one.over_seeds is not None
        ],
        "slices": [
            (title, max(part.num_users for part in of.values()), [_slice_cell(of.get(metric)) for metric in headlines])
            for title, of in by_slice.items()
        ],
        "plots": plots,
        "reference": reference,
        "other": other,
    }


def _main_metric(headlines: Sequence[str]) -> str:
    """Return the metric of the plot of slices: ndcg where it was compared."""
    return next((name for name in headlines if name.startswith("ndcg@")), headlines[0])


def _tile(one: Difference) -> dict[str, str]:
    return {
        "name": one.metric,
        "value": f"{one.difference:+.4f}",
        "interval": verdicts.signed_interval(one.interval),
        "note": f"{verdicts.WORDS[one.outcome]}, {figure_text(one.reference)} to {figure_text(one.value)}",
    }


def _metric_row(one: Difference) -> list[str]:
    """Return a row of the table of metrics, under METRIC_HEADINGS."""
    return [
        one.metric,
        verdicts.WORDS[one.outcome],
        figure_text(one.reference),
        figure_text(one.value),
        f"{one.difference:+.4f}",
        verdicts.signed_interval(one.interval),
        verdicts.percent_text(one.relative),
        verdicts.p_text(one.p_corrected).removeprefix("p = ").removeprefix("p "),
    ]


def _user_row(one: Difference) -> list[str]:
    """Return a row of the table of users and effect sizes, under USER_HEADINGS."""
    users = one.users
    counts = ["", "", ""] if users is None else [f"{number:,}" for number in (users.better, users.equal, users.worse)]
    return [
        one.metric,
        *counts,
        "" if users is None else verdicts.p_text(users.p_corrected).removeprefix("p = ").removeprefix("p "),
        "" if one.effect_size is None else f"{one.effect_size:+.3f}",
        figure_text(one.detectable),
    ]


def _slice_cell(part: SliceDifference | None) -> tuple[str, str]:
    """Return the difference on a slice, with a star if it counts, and its interval."""
    if part is None:
        return "", ""
    one = part.of
    return f"{one.difference:+.4f}" + "*" * (one.p_corrected < LEVEL), verdicts.signed_interval(one.interval)


def _run_row(side: str, facts: RunFacts) -> list[str]:
    return [
        facts.name,
        side,
        "?" if facts.seed is None else str(facts.seed),
        facts.checkpoint,
        _cost_text(facts.cost),
        "?" if facts.cost.steps is None else f"{facts.cost.steps:,}",
        "?" if facts.cost.events_per_second is None else f"{facts.cost.events_per_second:,.0f} events/s",
    ]


def _cost_text(cost: Cost) -> str:
    """Return how long a training took, and on how many workers."""
    if cost.seconds is None:
        return "not recorded"
    workers = cost.num_workers
    device = "GPU" if cost.on_gpus else "CPU"
    return duration_text(cost.seconds) + (f", {workers} {device} worker{'s' * (workers > 1)}" if workers else "")


def _metric_plot(pair: Pair) -> Plot:
    """Draw the difference in each metric that has a direction, with intervals."""
    shown = [one for one in pair.differences if metric_of(one.metric).larger_is_better is not None] or pair.differences
    caption = (
        f"{pair.other.title} minus {pair.reference.title} by metric, with 95 % intervals over users. Grey: neither "
        "better nor worse after the correction."
    )
    return _forest([one.metric for one in shown], shown, "difference", caption)


def _slice_plot(pair: Pair, metric: str) -> Plot:
    """Draw the difference in one metric on each slice."""
    shown = [part for part in pair.slices if part.of.metric == metric]
    labels = [f"{part.title} ({part.num_users:,})" for part in shown]
    caption = (
        f"{pair.other.title} minus {pair.reference.title} in {metric} on slices (number of users), with 95 % intervals. Grey: "
        "neither better nor worse after the correction for all slices."
    )
    return _forest(labels, [part.of for part in shown], f"difference in {metric}", caption)


def _forest(labels: Sequence[str], differences: Sequence[Difference], axis: str, caption: str) -> Plot:
    """Draw differences below one another, each with its interval."""
    figure, axes = plt.subplots(figsize=(7, _ROW_INCHES * len(labels) + 0.9))
    axes.axvline(0.0, color=page.INK, linewidth=0.8)
    for place, one in enumerate(differences):
        colour = _COLOURS[one.outcome]
        if one.interval is not None:
            axes.plot(one.interval, [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
        axes.plot([one.difference], [place], "o", markersize=5, color=colour)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel(axis)
    axes.margins(x=0.06)
    return plot_of(figure, caption)
