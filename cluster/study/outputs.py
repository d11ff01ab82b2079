"""What a study leaves: results.json, results.csv, table.md, plot.svg, plot.png, study.html."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.study import headline
from cluster.study.effects import Effect
from cluster.study.plots import draw
from cluster.study.statistics import Estimate
from cluster.study.summary import AXES, SHORT, Row, Summary
from cluster.study.trials import Plan
from trainer.pages import page
from trainer.storage.files import write_json_atomically, write_text_atomically

RESULTS, CSV, TABLE, PLOT, PICTURE, PAGE = (
    "results.json",
    "results.csv",
    "table.md",
    "plot.svg",
    "plot.png",
    "study.html",
)


def write(plan: Plan, summary: Summary) -> Path:
    """All files, into the study's folder; returns the page. Written from results alone, so that running again writes the same."""
    folder = plan.file.folder
    write_json_atomically(folder / RESULTS, results_values(plan, summary))
    write_text_atomically(folder / CSV, csv_text(summary))
    write_text_atomically(folder / TABLE, table_text(summary))
    plots: list[page.Plot] = []
    if summary.rows:
        drawn = draw(summary, plan.study.colour or _first_key(plan))
        # Alone the picture has no page around it, whose colour would be its background.
        write_text_atomically(folder / PLOT, drawn.plot.svg.replace("<svg", '<svg style="background:#fff"', 1))
        (folder / PICTURE).write_bytes(drawn.png)
        plots = [drawn.plot]
    write_text_atomically(folder / PAGE, _page(plan, summary, plots))
    return folder / PAGE


def _first_key(plan: Plan) -> str | None:
    """Without named variants, the first key of the grid that has several values, unless it tells all points apart anyway."""
    if plan.study.variants or len(plan.study.grid) < 2:
        return None
    return next((key for key, values in plan.study.grid.items() if len(values) > 1), None)


def results_values(plan: Plan, summary: Summary) -> dict[str, Any]:
    """results.json: everything, as plain values."""
    return {
        "metric": summary.metric,
        "ranked_by": "validation",
        "seeds": list(summary.seeds),
        "compared_with": summary.first,
        "fronts": {axis: [row.name for row in front_of(summary, axis)] for axis in AXES},
        "points": [asdict(row) for row in summary.rows],
        "effects": [asdict(effect) for effect in summary.effects],
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


def front_of(summary: Summary, axis: str) -> list[Row]:
    """The Pareto front on one axis, cheapest first."""
    sign = -1.0 if AXES[axis][0] else 1.0
    return sorted(
        (row for row in summary.rows if axis in row.fronts), key=lambda row: sign * (row.on_axis(axis) or 0.0)
    )


def csv_text(summary: Summary) -> str:
    """One line per point; intervals as two columns each."""
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
        costs = row.costs
        line |= {
            "forward_flops_per_event": costs.forward_flops_per_event,
            "training_flops_per_event": costs.training_flops_per_event,
            "matmul_flops_per_event": costs.matmul_flops_per_event,
            "dense_parameters": costs.dense_parameters,
            "table_parameters": costs.table_parameters,
            "activation_bytes_per_event": costs.activation_bytes_per_event,
            "moved_bytes_per_event": costs.moved_bytes_per_event,
            "peak_bytes": row.peak_bytes,
            "events_per_second": row.events_per_second,
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
        name: None if estimate is None else estimate.mean,
        f"{name}_seeds_low": seeds[0],
        f"{name}_seeds_high": seeds[1],
        f"{name}_users_low": users[0],
        f"{name}_users_high": users[1],
    }


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


HEADINGS = (
    "point",
    "rank",
    "validation",
    "+- seeds",
    "+- users",
    "minus first",
    "test",
    "training FLOPs/event",
    "parameters dense + tables",
    "peak memory",
    "events/s",
    "seconds",
    "front",
)


def cells(row: Row) -> list[str]:
    """One row of the table that people read, under HEADINGS."""
    costs = row.costs
    return [
        row.title + (f" ({len(row.failed)} failed)" if row.failed else ""),
        str(row.rank),
        *_quality(row),
        f"{costs.training_flops_per_event:,.0f}",
        f"{costs.dense_parameters:,} + {costs.table_parameters:,}",
        f"{row.peak_bytes / 2**20:,.0f} MiB" if row.peak_bytes else "?",
        f"{row.events_per_second:,.0f}" if row.events_per_second else "?",
        f"{row.train_seconds:,.0f}" + ("*" if row.resumed else ""),
        ", ".join(SHORT[axis] for axis in row.fronts),
    ]


BRIEF_HEADINGS = ("rank", "validation", "±", "minus first", "test", "FLOPs", "events/s", "memory")


def brief_cells(row: Row) -> list[str]:
    """What of a row fits into a terminal, under BRIEF_HEADINGS."""
    of_event = row.costs.training_flops_per_event
    return [
        str(row.rank),
        f"{row.validation.mean:.4f}",
        half(row.validation.over_seeds or row.validation.over_users).removeprefix("±"),
        difference_text(row.difference),
        f"{row.test.mean:.4f}" if row.test else "",
        f"{of_event / 1e6:.2f}M" if of_event < 1e9 else f"{of_event / 1e9:.2f}G",
        f"{row.events_per_second:,.0f}" if row.events_per_second else "?",
        f"{row.peak_bytes / 2**20:,.0f} MiB" if row.peak_bytes else "?",
    ]


EFFECT_HEADINGS = ("setting", "value", "trials", "validation", "+- seeds", "+- users", "minus first value", "test")


def effect_cells(effect: Effect) -> list[str]:
    """One value of a setting, under EFFECT_HEADINGS."""
    return [
        effect.setting,
        effect.value if isinstance(effect.value, str) else json.dumps(effect.value, default=str),
        str(effect.num_trials),
        *_quality(effect),
    ]


def _quality(of: Row | Effect) -> list[str]:
    """Validation with both intervals, difference, test with its interval over seeds."""
    return [
        f"{of.validation.mean:.4f}",
        half(of.validation.over_seeds),
        half(of.validation.over_users),
        difference_text(of.difference),
        f"{of.test.mean:.4f} {half(of.test.over_seeds)}".strip() if of.test else "",
    ]


def half(interval: tuple[float, float] | None) -> str:
    """Half the width of an interval."""
    return "" if interval is None else f"±{(interval[1] - interval[0]) / 2:.4f}"


def difference_text(estimate: Estimate | None) -> str:
    """A difference with its interval over users; a star where both intervals leave out zero."""
    if estimate is None:
        return ""
    both = (estimate.over_seeds, estimate.over_users)
    clear = all(interval is not None and (interval[0] > 0 or interval[1] < 0) for interval in both)
    return f"{estimate.mean:+.4f} {half(estimate.over_users)}".strip() + ("*" if clear else "")


NOTES = (
    "Ranked by the validation split; the test split decides nothing.",
    "±: half of a 95 % interval, over seeds (Student's t: another training run) and over users (each user's mean over the seeds: "
    "another sample of users).",
    "minus first: the paired difference to the first row, same seeds and same users, ± over users; a star where the intervals over "
    "seeds and over users both leave out zero.",
    "FLOPs and parameters are computed from the settings; events/s, memory and seconds were measured while other trials ran beside "
    "it, and seconds with a star are of a trial that was resumed.",
    "front: no other row is at least as good at no more FLOPs, at no less speed, or in no more memory.",
)
EFFECT_NOTE = (
    "Each value of a setting, averaged over all other settings, of seeds under which every trial finished; its difference to the "
    "setting's first value is of the same seeds and users, ± and stars as above."
)


def table_text(summary: Summary) -> str:
    """table.md."""
    lines = _markdown(HEADINGS, [cells(row) for row in summary.rows], summary.metric)
    failures = [f"- {name}: {reason}" for name, reason in summary.failed.items()]
    if failures:
        lines += ["", "Failed:", "", *failures]
    lines += ["", *(f"{note}  " for note in NOTES)]
    if summary.effects:
        effects = _markdown(EFFECT_HEADINGS, [effect_cells(effect) for effect in summary.effects], summary.metric)
        lines += ["", *effects, "", EFFECT_NOTE]
    return "\n".join(lines).rstrip() + "\n"


def _markdown(headings: Sequence[str], rows: list[list[str]], metric: str) -> list[str]:
    lines = [f"| {' | '.join(named(headings, metric))} |", "|" + "---|" * len(headings)]
    return lines + ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]


def named(headings: Sequence[str], metric: str) -> list[str]:
    """With the metric that is validated by."""
    return [metric if heading == "validation" else heading for heading in headings]


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
        headings=named(HEADINGS, summary.metric),
        rows=[cells(row) for row in headline.by_rank(summary.rows)],
        notes=NOTES,
        effect_headings=named(EFFECT_HEADINGS, summary.metric),
        effects=[effect_cells(effect) for effect in summary.effects],
        effect_note=EFFECT_NOTE,
        failed=summary.failed,
        plots=plots,
        fronts={AXES[axis][1]: [row.name for row in front_of(summary, axis)] for axis in AXES},
        parts_of_model=parts,
        costs=[[row.name, *(f"{row.costs.parts.get(part, 0.0):,.0f}" for part in parts)] for row in summary.rows],
        settings=headline.study_settings(plan),
        trials=[trial.name for trial in plan.trials],
    )
