"""Quality, sharpness and faithfulness of forms of attention, of the trials of a study, as one JSON file and a table.

    shoal study configs/sparse_attention_movielens1m.toml --set logs.path=PATH/TO/events_timed.parquet
    python -m benchmarks.sparse_attention runs/sparse_attention_movielens1m --out docs/results/sparse_attention

Quality is that of `shoal compare` on the test events of all users, with the seeds of a variant as one model. Attention is measured
on some users: the effective number of events of each head, and the faithfulness of the last block's weights, of rollout, and of the
order of time. The first variant is the reference.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.faithfulness import Settings, held_out, rounded, trained_model
from trainer.comparison.comparison import compare
from trainer.explanation import attention, rollout
from trainer.explanation.aggregates.sums import attention_sums, means
from trainer.explanation.explained import ExplainedNextItem, explained_model
from trainer.explanation.faithfulness.measure import measure
from trainer.explanation.faithfulness.orders import order_of, random_order, recency_order
from trainer.explanation.faithfulness.scoring import whole_catalogue
from trainer.explanation.faithfulness.summary import summarise
from trainer.pages.text import figure_text

METRIC = "ndcg@10"
FAITHFULNESS = ("pos@10", "neg@10", "del")
ORDERS = ("attention", "rollout", "recency", "random")
Z95 = 1.96


def main() -> None:
    """Measure the trials of a study, and write the results."""
    parser = argparse.ArgumentParser(description="Forms of attention: quality, sharpness, faithfulness.")
    parser.add_argument("study", help="folder of the study")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--users", type=int, default=300, help="number of users of the measurements of attention")
    parser.add_argument("--seed", type=int, default=1, help="seed of users and random orders")
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = runs_of(Path(given.study))
    settings = Settings(given.users, given.seed, 20, 160, 5, "deleted", ())
    values = {
        "metric": METRIC,
        "users": given.users,
        "quality": quality(runs),
        "attention": {name: [of_run(folder, settings) for folder in folders] for name, folders in runs.items()},
    }
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(rounded(values), indent=1), encoding="utf-8")
    (out / "table.md").write_text(table(values), encoding="utf-8")


def runs_of(study: Path) -> dict[str, list[Path]]:
    """Return the finished trials of each variant of a study, in the order of its results."""
    results = json.loads((study / "results.json").read_text(encoding="utf-8"))
    names = [point["name"] for point in results["points"]]
    trials = sorted(path for path in (study / "trials").iterdir() if (path / "evaluation/test/metrics.json").exists())
    runs = {name: [path for path in trials if path.name.rpartition("-seed")[0] == name] for name in names}
    ordered = sorted(runs, key=lambda name: (name != "softmax", name))
    return {name: runs[name] for name in ordered if runs[name]}


def quality(runs: dict[str, list[Path]]) -> dict[str, Any]:
    """Return the metric of each variant, and its difference to the first one."""
    sides = [(name, folder) for name, folders in runs.items() for folder in folders]
    compared = compare(sides, metrics=[METRIC])
    first, *others = runs
    of_pairs = {pair.other.name: pair.differences[0] for pair in compared.pairs if pair.reference.name == first}
    values: dict[str, Any] = {first: {"value": next(iter(of_pairs.values())).reference}}
    for name in others:
        one = of_pairs[name]
        values[name] = {
            "value": one.value,
            "difference": one.difference,
            "interval": one.interval,
            "over_seeds": one.over_seeds,
            "p_corrected": one.p_corrected,
            "outcome": one.outcome,
        }
    return {
        "num_users": compared.num_users,
        "num_seeds": {name: len(f) for name, f in runs.items()},
        "variants": values,
    }


def of_run(folder: Path, settings: Settings) -> dict[str, Any]:
    """Return the effective number of events of a run's heads, and the faithfulness of its attention."""
    trained = trained_model(folder)
    model = explained_model(trained)
    assert isinstance(model, ExplainedNextItem)
    held = held_out(model, None, settings)
    scorer = whole_catalogue(model, held.seen)
    asked = held.asked.with_targets(scorer.top(held.asked).top_items[:, 0])
    weights = attention.attribute(model, asked)
    assert weights.detail is not None
    rows = means(attention_sums(weights.maps, weights.detail.T, asked.offsets, {}))
    halves = [Z95 * row.effective_deviation / np.sqrt(row.num_histories) for row in rows]
    orders = {
        "attention": order_of(weights.values.astype(np.float64), asked.offsets),
        "rollout": order_of(rollout.attribute(model, asked).values.astype(np.float64), asked.offsets),
        "recency": recency_order(asked.offsets),
        "random": random_order(asked.keys, asked.offsets, settings.seed),
    }
    result = summarise(
        measure(scorer, asked, orders, "deleted", pool=asked), folder.name, held.num_short, settings.seed
    )
    return {
        "run": folder.name,
        "events": float(np.mean(asked.lengths)),
        "effective": float(np.mean([row.effective for row in rows])),
        "effective_half": float(np.mean(halves)),
        "largest": float(np.mean([row.largest for row in rows])),
        "zeros": float((weights.detail == 0.0).mean()),
        "faithfulness": {
            order: {
                metric: [(one := result.value(order, metric, "shares")).value, *one.interval] for metric in FAITHFULNESS
            }
            for order in ORDERS
        },
    }


def table(values: dict[str, Any]) -> str:
    """Return the results as tables in Markdown."""
    variants = values["quality"]["variants"]
    seeds = values["quality"]["num_seeds"]
    head = [
        "attention",
        "seeds",
        METRIC,
        "difference",
        "95 % over users",
        "over seeds",
        "effective events",
        "weights of 0",
    ]
    rows = []
    for name, one in variants.items():
        runs = values["attention"][name]
        effective = f"{_mean(runs, 'effective'):.1f} +- {_mean(runs, 'effective_half'):.1f}"
        cells = ["", "", ""]
        if "difference" in one:
            cells = [f"{one['difference']:+.4f}", _interval(one["interval"]), _interval(one["over_seeds"])]
        zeros = f"{_mean(runs, 'zeros'):.0%}"
        rows.append([name, str(seeds[name]), figure_text(one["value"]), *cells, effective, zeros])
    first = _table(head, rows)
    head = [
        "attention",
        "order",
        *(f"{metric} {'up' if metric.startswith('neg') else 'down'}" for metric in FAITHFULNESS),
    ]
    rows = [
        [name, order, *(_cell(values["attention"][name], order, metric) for metric in FAITHFULNESS)]
        for name in variants
        for order in ORDERS
    ]
    return f"{first}\n{_table(head, rows)}"


def _cell(runs: Sequence[dict[str, Any]], order: str, metric: str) -> str:
    of_seeds = [run["faithfulness"][order][metric] for run in runs]
    value = np.mean([one[0] for one in of_seeds])
    half = np.mean([one[2] - one[1] for one in of_seeds]) / 2
    return f"{value:.3f} +- {half:.3f}"


def _mean(runs: Sequence[dict[str, Any]], name: str) -> float:
    return float(np.mean([run[name] for run in runs]))


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:+.4f} to {bounds[1]:+.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
