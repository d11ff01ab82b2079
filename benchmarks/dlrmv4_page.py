"""Tables of docs/dlrmv4.md: `python -m benchmarks.dlrmv4_page` writes them.

The figures are those of a run of configs/dlrmv4_synthetic.toml, stored in docs/results/dlrmv4_synthetic, and those of the plans in
configs/plans, which are computed here.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown, with_table
from cluster.plan.command import Planned, make
from cluster.plan.grids import summary_grid
from cluster.plan.request import read_request

RESULTS, PAGE = Path("docs/results/dlrmv4_synthetic"), Path("docs/dlrmv4.md")
PLANS = {"8 H200": Path("configs/plans/dlrmv4_8gpu.toml"), "64 H100": Path("configs/plans/dlrmv4_64gpu.toml")}
NUM_DAYS = 5  # that are shown: the first, the last, and others at equal distances
METRICS = ("auc", "gauc", "ne", "calibration")


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables().items():
        text = with_table(text, name, table)
    PAGE.write_text(text, encoding="utf-8")


def tables() -> dict[str, str]:
    """Return the tables of the page by the names of their marks."""
    metrics, oracle, progressive = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("metrics", "oracle", "progressive")
    )
    plans = {name: make(read_request(str(path), [], {})) for name, path in PLANS.items()}
    return {"days": days_table(progressive), "test": period_table(metrics, oracle), "plans": plans_table(plans)}


def days_table(progressive: dict[str, Any]) -> str:
    """Return some days, each evaluated before it was trained, and the mean over all of them."""
    days = progressive["days"]
    last = len(days) - 1
    shown = sorted({round(last * place / (NUM_DAYS - 1)) for place in range(NUM_DAYS)})
    rows = [
        [
            days[place]["begins"][:10],
            f"{days[place]['step']:,}",
            f"{sum(days[place]['impressions'].values()):,}",
            *_figures(days[place]),
        ]
        for place in shown
    ]
    mean = [f"mean of all {len(days)}, weighted", "", "", *_figures(progressive["mean"])]
    return markdown(
        ["next day", "steps before", "impressions", "AUC", "popularity", "NE", "calibration"], [*rows, mean]
    )


def _figures(values: dict[str, Any]) -> list[str]:
    of_model, popularity = values["model"], values["popularity"]["auc"]
    return [f"{value:.4f}" for value in (of_model["auc"], popularity, of_model["ne"], of_model["calibration"])]


def period_table(metrics: dict[str, Any], oracle: dict[str, Any]) -> str:
    """Return the metrics of the test period, of the model and of the probabilities from which the log was drawn."""
    rows = []
    for name in METRICS:
        low, high = metrics["ci95"].get(name) or (None, None)
        interval = "" if low is None else f"{low:.4f} - {high:.4f}"
        values = (oracle[name][side] for side in ("model", "best"))
        model, best = (f"{value:.4f}" for value in values)
        popularity = metrics["baselines"]["popularity"].get(name)
        rows.append([name.upper() if name != "calibration" else name, model, interval, best, f"{popularity:.4f}"])
    return markdown(["test period", "recipe", "95 % interval", "known probabilities", "popularity"], rows)


def plans_table(plans: dict[str, Planned]) -> str:
    """Return the headline figures of the plans."""
    grid = summary_grid([planned.values for planned in plans.values()], list(plans))
    return markdown(["predicted", *plans], [list(row) for row in grid.rows])


if __name__ == "__main__":
    main()
