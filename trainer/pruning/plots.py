"""Plot of quality against FLOPs of pruned models."""

from matplotlib import pyplot as plt

from trainer.pages import page
from trainer.pages.page import Plot, plot_of
from trainer.pruning.results import PruningResults


def quality_plot(results: PruningResults) -> Plot:
    """Draw the difference of each pruned model to the unpruned one against its FLOPs, with intervals over users."""
    first, *pruned = results.rows
    figure, axes = plt.subplots(figsize=(7, 3.8))
    axes.axhline(0.0, color=page.GREY, linewidth=1.0)
    axes.plot([1.0], [0.0], "s", ms=6, color=page.INK, label="unpruned")
    tuned = max(row.steps for row in results.rows)
    kinds = {0: ("as pruned", page.COLOURS[0], "o")}
    if tuned:
        kinds[tuned] = (f"{tuned:,} steps later", page.COLOURS[1], "^")
    for steps, (label, colour, marker) in kinds.items():
        rows = [row for row in pruned if row.steps == steps]
        if not rows:
            continue
        aside = 0.006 * bool(steps)  # so that bars do not cover each other
        shares = [row.cost.forward_flops / first.cost.forward_flops + aside for row in rows]
        values = [row.differences[0].difference for row in rows]
        bounds = [row.differences[0].interval or (value, value) for row, value in zip(rows, values, strict=True)]
        below = [max(0.0, value - low) for value, (low, _) in zip(values, bounds, strict=True)]
        above = [max(0.0, high - value) for value, (_, high) in zip(values, bounds, strict=True)]
        axes.errorbar(shares, values, yerr=[below, above], fmt=marker, ms=5, capsize=3, color=colour, label=label)
        for row, share, (_, high) in zip(rows, shares, bounds, strict=True):
            if not row.steps:  # the trained ones are at the same places
                text = row.title.removeprefix("without ")
                axes.annotate(text, (share, high), (0, 4), textcoords="offset points", ha="center", fontsize=7)
    metric = pruned[0].differences[0].metric
    axes.set_xlabel("forward FLOPs, as a share of the unpruned model")
    axes.set_xlim(right=1.05)
    axes.set_ylabel(f"difference in {results.split} {metric}")
    axes.margins(x=0.12, y=0.15)
    axes.legend(frameon=False, fontsize=8)
    caption = (
        f"Difference in {metric} to the unpruned model against forward FLOPs, which are those of the cost model. "
        f"Bars: 95 % intervals over {results.num_users:,} users."
    )
    return plot_of(figure, caption)
