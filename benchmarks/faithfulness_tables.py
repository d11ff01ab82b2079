"""Tables of docs/explain.md, made of the results of benchmarks.faithfulness.

    python -m benchmarks.faithfulness_tables                  # writes docs/explain.md and docs/results/explain/tables.md

A table replaces what is between its two marks, such as <!-- table: movielens1m shares --> and <!-- end -->. Values are means over
the seeds of a model, and "+-" is half of the 95 % interval over users, averaged over seeds.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.explanation.faithfulness.levels import Levels
from trainer.explanation.faithfulness.metrics import larger_is_better
from trainer.explanation.faithfulness.orders import REFERENCES
from trainer.explanation.faithfulness.results import Faithfulness, Measured, PlantedRecovery, from_json

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs/explain.md", ROOT / "docs/results/explain"
ALL_TABLES = "tables.md"
METRICS = ("pos@5", "pos@10", "pos@20", "neg@10", "del", "ins", "cdcg")
NAMES = {
    "gradient_x_input": "gradient x input",
    "ig_zero": "integrated gradients, zero",
    "ig_sampled": "integrated gradients, sampled",
    "popularity": "popularity order",
    "recency": "recency order",
    "random": "random order",
}
MARKED = re.compile(r"(<!-- table: ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write the tables into the page, and all tables into one file."""
    results = read_results(RESULTS)
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    (RESULTS / ALL_TABLES).write_text(all_tables(results), encoding="utf-8")


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results by name of their file, without ".json"."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def with_tables(text: str, results: dict[str, dict[str, Any]]) -> str:
    """Return a page with the tables that its marks name."""
    return MARKED.sub(lambda mark: mark[1] + table_of(mark[2].split(), results) + mark[3], text)


def all_tables(results: dict[str, dict[str, Any]]) -> str:
    """Return all tables of metrics as one page."""
    lines = ["# Faithfulness of explanations: all tables\n", "Made by `python -m benchmarks.faithfulness_tables`.\n"]
    for name, values in results.items():
        if any("faithfulness" in run for run in values["runs"]):
            for removed in Levels().names:
                what = "area over shares" if removed == "shares" else f"{removed} events"
                lines.append(f"## {name}, {what}\n\n{metrics_table(values, removed)}")
    return "\n".join(lines)


def table_of(words: Sequence[str], results: dict[str, dict[str, Any]]) -> str:
    """Return the table that a mark names: the results, and what of them."""
    values = results[words[0]]
    match words[1:]:
        case ["runs"]:
            return runs_table(values)
        case ["contrasts"]:
            return contrasts_table(values)
        case ["checks"]:
            return checks_table(values)
        case ["planted"]:
            return planted_table(values)
        case ["seconds"]:
            return seconds_table(values)
        case [removed]:
            return metrics_table(values, removed)
    raise ValueError(f"no table is called {' '.join(words)!r}")


def runs_table(values: dict[str, Any]) -> str:
    """Return what was trained and measured."""
    rows = []
    for name, runs in _models(values):
        run, result = runs[0]["run"], _faithful(runs[0])
        rows.append(
            [
                name,
                f"{run['encoder']}, {run['normalisation']}, bias {run['bias']}"
                + (", with the time of the request" if run["request_time"] else ""),
                f"{run['num_blocks']} x {run['width']}",
                ", ".join(str(one["run"]["seed"]) for one in runs),
                _mean([one["hr@10"] for one in runs], 3),
                f"{result.num_users} ({result.num_short} too short)",
                f"{result.median_events:g}",
            ]
        )
    head = ["model", "encoder", "blocks x width", "seeds", "HR@10 of test events", "users", "median events"]
    return _table(head, rows)


def metrics_table(values: dict[str, Any], removed: str) -> str:
    """Return the metrics of all models and orders. The best method of a model is bold."""
    head = ["model", "order", *(f"{name} {'up' if larger_is_better(name) else 'down'}" for name in METRICS)]
    rows = []
    for name, runs in _models(values):
        results = [_faithful(run) for run in runs]
        orders = results[0].orders
        for order in orders:
            cells = []
            for metric in METRICS:
                best = max(
                    (one for one in orders if one not in REFERENCES),
                    key=lambda one, metric=metric: _signed(results, one, metric, removed),  # type: ignore[misc]
                )
                cells.append(_cell([of.value(order, metric, removed) for of in results], order == best))
            rows.append([name, NAMES.get(order, order), *cells])
    return _table(head, rows)


def contrasts_table(values: dict[str, Any]) -> str:
    """Return how often each method is better, not different, and worse than each reference."""
    references = ("random", "recency", "popularity", "attention")
    rows = []
    for name, runs in _models(values):
        results = [_faithful(run) for run in runs]
        for order in (one for one in results[0].orders if one not in REFERENCES):
            cells = []
            for reference in references:
                outcomes = [
                    one.outcome
                    for of in results
                    for one in of.contrasts
                    if (one.order, one.reference) == (order, reference)
                ]
                counts = [outcomes.count(outcome) for outcome in ("better", "none", "worse")]
                cells.append(" / ".join(map(str, counts)) if outcomes else "")
            rows.append([name, NAMES.get(order, order), *cells])
    return _table(["model", "method", *(f"against {NAMES.get(one, one)}" for one in references)], rows)


def checks_table(values: dict[str, Any]) -> str:
    """Return the checks: correlation with the maps of randomised models, and agreement over seeds."""
    rows = []
    for name, runs in _models(values):
        agreement = {one["order"]: one for one in values["agreement"].get(name, [])}
        for check in runs[0]["randomised"]:
            order = check["order"]
            stages = [f"{stage['randomised']} {stage['correlation']:.2f}" for stage in check["stages"]]
            of_seeds = agreement.get(order)
            cells = ["", ""] if of_seeds is None else [f"{of_seeds[part]:.2f}" for part in ("correlation", "overlap")]
            rows.append([name, NAMES.get(order, order), ", ".join(stages), *cells])
    head = ["model", "method", "correlation after randomising", "correlation over seeds", "common top 3 over seeds"]
    table = _table(head, rows)
    uniform = [
        [
            name,
            _mean([run["uniform"]["same_top"] for run in runs], 2),
            _mean([run["uniform"]["overlap"] for run in runs], 2),
            _mean([run["uniform"]["probability"] for run in runs], 4),
            _mean([run["uniform"]["probability_uniform"] for run in runs], 4),
        ]
        for name, runs in _models(values)
    ]
    head = ["model", "same best item", "common top 10", "probability of the best item", "with uniform attention"]
    return f"{table}\n{_table(head, uniform)}"


def planted_table(values: dict[str, Any]) -> str:
    """Return how well each order finds planted causes."""
    (run,) = values["runs"]
    known = {one["order"]: from_json(PlantedRecovery, one) for one in run["planted_known"]}
    rows = []
    for one in (from_json(PlantedRecovery, given) for given in run["planted"]):
        half = (one.interval[1] - one.interval[0]) / 2
        ratio = "" if one.ratio_to_recency is None else f"{one.ratio_to_recency:.1f}"
        rows.append(
            [
                NAMES.get(one.order, one.order),
                f"{one.precision:.3f} +- {half:.3f}",
                f"{one.hit_rate:.2f}",
                ratio,
                f"{known[one.order].hit_rate:.2f}",
            ]
        )
    number, of_known = run["planted"][0]["num_effects"], run["planted_known"][0]["num_effects"]
    head = ["order", "precision@3 (at most 0.333)", f"found, of {number} effects", "over recency order"]
    return _table([*head, f"found, of {of_known} effects in the top 10"], rows)


def seconds_table(values: dict[str, Any]) -> str:
    """Return the seconds of each method, of the first seed."""
    runs = [(name, of_name[0]) for name, of_name in _models(values)]
    names = list(dict.fromkeys(method for _, run in runs for method in run["seconds"]))
    rows = [[name, *(f"{run['seconds'][method]:.1f}" for method in names)] for name, run in runs]
    return _table(["model", *(NAMES.get(method, method) for method in names)], rows)


def _models(values: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the runs of each model that was measured, by name."""
    runs = [run for run in values["runs"] if "faithfulness" in run]
    for name in dict.fromkeys(run["faithfulness"]["model"] for run in runs):
        yield name, [run for run in runs if run["faithfulness"]["model"] == name]


def _faithful(run: dict[str, Any]) -> Faithfulness:
    return from_json(Faithfulness, run["faithfulness"])


def _signed(results: Sequence[Faithfulness], order: str, metric: str, removed: str) -> float:
    """Return a metric of an order such that larger is better."""
    total = sum(one.value(order, metric, removed).value for one in results)
    return total if larger_is_better(metric) else -total


def _cell(seeds: Sequence[Measured], is_best: bool) -> str:
    value = sum(one.value for one in seeds) / len(seeds)
    half = sum(one.interval[1] - one.interval[0] for one in seeds) / len(seeds) / 2
    text = f"{value:.3f} +- {half:.3f}"
    return f"**{text}**" if is_best else text


def _mean(values: Sequence[float], digits: int) -> str:
    return f"{sum(values) / len(values):.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
