"""Files of a study: results.json, results.csv, table.md, plot.svg, plot.png, study.html."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.study import headline
from cluster.study.effects import Effect
from cluster.study.plots import draw
from cluster.study.statistics import Estimate
from cluster.study.summary import Axis, Row, Summary, axes_of
from cluster.study.trials import Plan
from trainer.pages import page
from trainer.storage.files import write_json_atomically, write_text_atomically
from trainer.tasks.metrics import metric_of

RESULTS, CSV, TABLE, PLOT, PICTURE, PAGE = (
    "results.json",
    "results.csv",
    "table.md",
    "plot.svg",
    "plot.png",
    "study.html",
)


def write(plan: Plan, summary: Summary) -> Path:
    """Write all files into the study's folder, and return the path of the page. The same results always give the same files."""
    folder = plan.file.folder
    write_json_atomically(folder / RESULTS, results_values(plan, summary))
    write_text_atomically(folder / CSV, csv_text(summary))
    write_text_atomically(folder / TABLE, table_text(summary))
    plots: list[page.Plot] = []
    if any(row.validation.is_defined for row in summary.rows):
        drawn = draw(summary, plan.study.colour or _first_key(plan))
        # Outside a page the picture needs a background of its own.
        write_text_atomically(folder / PLOT, str(drawn.plot.svg).replace("<svg", '<svg style="background:#fff"', 1))
        (folder / PICTURE).write_bytes(drawn.png)
        plots = [drawn.plot]
    write_text_atomically(folder / PAGE, _page(plan, summary, plots))
    return folder / PAGE


def _first_key(plan: Plan) -> str | None:
    """Return the first key of the grid with several values; None with named variants, or if it alone identifies all points."""
    if plan.study.variants or len(plan.study.grid) < 2:
        return None
    return next((key for key, values in plan.study.grid.items() if len(values) > 1), None)


def results_values(plan: Plan, summary: Summary) -> dict[str, Any]:
    """Return the content of results.json: everything, as plain values."""
    return {
        "metric": summary.metric,
        "ranked_by": "validation",
        "seeds": list(summary.seeds),
        "compared_with": summary.first,
        "fronts": {axis.name: [row.name for row in front_of(summary, axis)] for axis in axes_of(summary.unit)},
        "points": [_without_nan({**asdict(row), "costs": row.costs.values()}) for row in summary.rows],
        "effects": [_without_nan(asdict(effect)) for effect in summary.effects],
        "trials": [
            {
                "name": trial.name,
                "point": plan.points[trial.point].name,
                "seed": trial.seed,
                "failed": summary.failed.get(trial.name),
            }
            for trial in plan.trials
        ],
    }


def _without_nan(value: Any) -> Any:
    """Return plain values with None for what is not defined, which JSON has no number for."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def front_of(summary: Summary, axis: Axis) -> list[Row]:
    """Return the Pareto front on one axis, cheapest first."""
    sign = -1.0 if axis.more_is_better else 1.0
    return sorted(
        (row for row in summary.rows if axis.name in row.fronts), key=lambda row: sign * (axis.of(row) or 0.0)
    )


def csv_text(summary: Summary) -> str:
    """Return the content of results.csv: a line per point, with two columns per interval."""
    keys = list(dict.fromkeys(key for row in summary.rows for key in row.settings))
    lines = []
    for row in summary.rows:
        line: dict[str, Any] = {"name": row.name, **{key: _plain(row.settings.get(key)) for key in keys}}
        line |= {"rank": row.rank, "seeds": " ".join(map(str, row.seeds))}
        for name, estimate in (
            ("validation", row.validation),
            ("difference", row.difference),
            ("test", row.test),
            ("test_difference", row.test_difference),
        ):
            line |= _columns(name, estimate)
        costs, unit = row.costs, summary.unit
        line |= {
            f"forward_flops_per_{unit}": costs.forward_flops,
            f"training_flops_per_{unit}": costs.training_flops,
            f"matmul_flops_per_{unit}": costs.matmul_flops,
            "dense_parameters": costs.dense_parameters,
            "table_parameters": costs.table_parameters,
            f"activation_bytes_per_{unit}": costs.activation_bytes,
            f"moved_bytes_per_{unit}": costs.moved_bytes,
            "peak_bytes": row.peak_bytes,
            "events_per_second": row.events_per_second,
            **({"impressions_per_second": row.impressions_per_second} if unit == "impression" else {}),
            "train_seconds": row.train_seconds,
            "resumed": row.resumed,
            "failed": len(row.failed),
        }
        lines.append(line)
    if not lines:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _columns(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    seeds = (None, None) if estimate is None or estimate.over_seeds is None else estimate.over_seeds
    users = (None, None) if estimate is None or estimate.over_users is None else estimate.over_users
    return {
        name: estimate.mean if estimate is not None and estimate.is_defined else None,
        f"{name}_seeds_low": seeds[0],
        f"{name}_seeds_high": seeds[1],
        f"{name}_users_low": users[0],
        f"{name}_users_high": users[1],
    }


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


# {metric} and {unit} are those of the study (named).
HEADINGS = (
    "point",
    "rank",
    "{metric}",
    "+- seeds",
    "+- users",
    "minus first",
    "test",
    "training FLOPs/{unit}",
    "parameters dense + tables",
    "peak memory",
    "{unit}s/s",
    "seconds",
    "front",
)


def cells(row: Row) -> list[str]:
    """Return a row of the table for people, under HEADINGS."""
    costs = row.costs
    return [
        row.title + (f" ({len(row.failed)} failed)" if row.failed else ""),
        _rank(row),
        *_quality(row),
        f"{costs.training_flops:,.0f}",
        f"{costs.dense_parameters:,} + {costs.table_parameters:,}",
        f"{row.peak_bytes / 2**20:,.0f} MiB" if row.peak_bytes else "?",
        _speed(row),
        f"{row.train_seconds:,.0f}" + ("*" if row.resumed else ""),
        ", ".join(axis.short for axis in axes_of(costs.unit) if axis.name in row.fronts),
    ]


BRIEF_HEADINGS = ("rank", "{metric}", "±", "minus first", "test", "FLOPs", "{unit}s/s", "memory")


def brief_cells(row: Row) -> list[str]:
    """Return a row of the table for a terminal, under BRIEF_HEADINGS."""
    flops = row.costs.training_flops
    return [
        _rank(row),
        mean_text(row.validation),
        half(row.validation.over_seeds or row.validation.over_users).removeprefix("±"),
        difference_text(row.difference),
        mean_text(row.test) if row.test else "",
        f"{flops / 1e6:.2f}M" if flops < 1e9 else f"{flops / 1e9:.2f}G",
        _speed(row),
        f"{row.peak_bytes / 2**20:,.0f} MiB" if row.peak_bytes else "?",
    ]


def _rank(row: Row) -> str:
    return "" if row.rank is None else str(row.rank)


def _speed(row: Row) -> str:
    speed = row.impressions_per_second if row.costs.unit == "impression" else row.events_per_second
    return f"{speed:,.0f}" if speed else "?"


EFFECT_HEADINGS = ("setting", "value", "trials", "{metric}", "+- seeds", "+- users", "minus first value", "test")


def effect_cells(effect: Effect) -> list[str]:
    """Return the row of a setting's value, under EFFECT_HEADINGS."""
    return [
        effect.setting,
        effect.value if isinstance(effect.value, str) else json.dumps(effect.value, default=str),
        str(effect.num_trials),
        *_quality(effect),
    ]


def _quality(of: Row | Effect) -> list[str]:
    """Return validation with both intervals, the difference, and test with its interval over seeds."""
    return [
        mean_text(of.validation),
        half(of.validation.over_seeds),
        half(of.validation.over_users),
        difference_text(of.difference),
        f"{mean_text(of.test)} {half(of.test.over_seeds)}".strip() if of.test else "",
    ]


def mean_text(estimate: Estimate) -> str:
    """Return a mean, or that it is not defined."""
    return f"{estimate.mean:.4f}" if estimate.is_defined else "not defined"


def half(interval: tuple[float, float] | None) -> str:
    """Return half the width of an interval."""
    return "" if interval is None else f"±{(interval[1] - interval[0]) / 2:.4f}"


def difference_text(estimate: Estimate | None) -> str:
    """Return a difference with its interval over users, and a star where both intervals exclude zero."""
    if estimate is None or not estimate.is_defined:
        return ""
    both = (estimate.over_seeds, estimate.over_users)
    clear = all(interval is not None and (interval[0] > 0 or interval[1] < 0) for interval in both)
    return f"{estimate.mean:+.4f} {half(estimate.over_users)}".strip() + ("*" if clear else "")


def notes_of(summary: Summary) -> list[str]:
    """Return the notes below the table, which explain its columns."""
    metric, unit, is_ranker = summary.metric, summary.unit, summary.unit == "impression"
    less = (
        "" if summary.larger_is_better else f" Less {metric} is better, so a difference below zero is an improvement."
    )
    of_users = (
        "each user's share in the metric, averaged over the seeds" if is_ranker else "each user's mean over the seeds"
    )
    undefined = any(not row.validation.is_defined for row in summary.rows)
    notes = [
        f"Ranked by the validation split; the test split decides nothing.{less}",
        f"±: half of a 95 % interval, over seeds (Student's t: another training run) and over users ({of_users}: another sample of "
        "users).",
        f"minus first: the paired difference to {summary.first}, same seeds and same users, ± over users; a star where the "
        "intervals over seeds and over users both exclude zero.",
        f"FLOPs and parameters are computed from the settings; {unit}s/s, memory and seconds were measured while other trials ran "
        "at the same time, and seconds with a star are of a trial that was resumed.",
        "front: no other row is at least as good at no more FLOPs, at no less speed, or in no more memory.",
    ]
    if undefined:
        notes.append(
            f"not defined: {metric_of(metric).undefined_when or 'a seed has no value'}; such a row has no rank."
        )
    return notes


EFFECT_NOTE = (
    "Each value of a setting, averaged over all other settings, for seeds under which every trial finished. The difference to the "
    "setting's first value is for the same seeds and users; ± and stars as above."
)


def table_text(summary: Summary) -> str:
    """Return the content of table.md."""
    lines = _markdown(named(HEADINGS, summary), [cells(row) for row in summary.rows])
    failures = [f"- {name}: {reason}" for name, reason in summary.failed.items()]
    if failures:
        lines += ["", "Failed:", "", *failures]
    lines += ["", *(f"{note}  " for note in notes_of(summary))]
    if summary.effects:
        effects = _markdown(named(EFFECT_HEADINGS, summary), [effect_cells(effect) for effect in summary.effects])
        lines += ["", *effects, "", EFFECT_NOTE]
    return "\n".join(lines).rstrip() + "\n"


def _markdown(headings: Sequence[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    return lines + ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]


def named(headings: Sequence[str], summary: Summary) -> list[str]:
    """Return headings with the metric of the study and the unit of its costs."""
    return [heading.format(metric=summary.metric, unit=summary.unit) for heading in headings]


def _page(plan: Plan, summary: Summary, plots: list[page.Plot]) -> str:
    """Return study.html."""
    parts = list(dict.fromkeys(part for row in summary.rows for part in row.costs.parts))
    best = headline.best_row(summary)
    return page.render(
        Path(__file__).parent,
        "study.html.j2",
        title=f"Study {plan.file.folder.name}",
        header=headline.header_rows(plan, summary),
        best=best,
        tiles=headline.tiles(summary),
        best_settings=headline.point_settings(best) if best is not None else [],
        headings=named(HEADINGS, summary),
        rows=[cells(row) for row in headline.by_rank(summary.rows)],
        notes=notes_of(summary),
        unit=summary.unit,
        effect_headings=named(EFFECT_HEADINGS, summary),
        effects=[effect_cells(effect) for effect in summary.effects],
        effect_note=EFFECT_NOTE,
        failed=summary.failed,
        plots=plots,
        fronts={axis.label: [row.name for row in front_of(summary, axis)] for axis in axes_of(summary.unit)},
        parts_of_model=parts,
        costs=[[row.name, *(f"{row.costs.parts.get(part, 0.0):,.0f}" for part in parts)] for row in summary.rows],
        settings=headline.study_settings(plan),
        trials=[trial.name for trial in plan.trials],
    )
