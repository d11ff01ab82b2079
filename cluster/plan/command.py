"""`shoal plan`: a dry run that predicts the placement and cost of tables on devices, without GPU, workers, torch or ray.

FOLDER/plan.json, plan.svg                     the plan (sharding.plan) and its picture
FOLDER/plan-compared.json, plan-compared.svg   the same of the second plan, with --compare
FOLDER/plan.html                               pictures and tables of both
FOLDER/calibration.json                        constants fitted to runs, with --calibrate
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table

from cluster.plan.calibration import FILE as CALIBRATION
from cluster.plan.calibration import Fitted, fit, refuse_other_device
from cluster.plan.grids import Grid, Planned, difference_grid, grids, summary_grid
from cluster.plan.picture import picture
from cluster.plan.request import OPTIONS, PlanRequest, read_request
from sharding.errors import PlacementError
from sharding.planning.costs import predict
from sharding.planning.planner import make_plan
from sharding.planning.warnings import warnings_of
from trainer.errors import UserError
from trainer.pages import page
from trainer.pages.text import moment_text
from trainer.placement.plan import inputs_of
from trainer.storage.files import write_json_atomically, write_text_atomically
from trainer.storage.objects.paths import local_path

NAMES = ("as given", "compared")
HEADLINES = ("time on tables in a step", "imbalance", "fullest device, of its limit", "most that a rank sends")
PLAN = "plan.json"
PAGE = "plan.html"


@dataclass(frozen=True)
class PlanAnswer:
    """The plan or plans, and the folder with their files."""

    planned: Planned
    other: Planned | None  # the second plan, with --compare
    compared: str  # its settings
    folder: Path  # of the files
    fitted: Fitted | None = None  # with --calibrate


def run(
    path: str,
    settings: list[str],
    rows: list[str],
    compare: str | None,
    out: str | None,
    calibrate: Sequence[str] = (),
) -> PlanAnswer:
    """Compute the plan and write its files. Raises UserError or PlacementError for mistakes of the user.

    Args:
        path: the config or the workload.
        settings: KEY=VALUE.
        rows: TABLE=N, for tables of unknown size.
        compare: settings of a second plan.
        out: the folder of the files.
        calibrate: folders of runs.
    """
    num_rows = rows_given(rows)
    fitted = fit(calibrate) if calibrate else None
    planned = make(read_request(path, settings, num_rows), fitted)
    other = None
    if compare is not None:
        other = make(read_request(path, settings + settings_in(compare), num_rows), fitted)
    folder = local_path(out, "--out") if out is not None else planned.request.folder
    answer = PlanAnswer(planned, other, compare or "", folder, fitted)
    _write(answer)
    return answer


def make(request: PlanRequest, fitted: Fitted | None = None) -> Planned:
    """Compute the plan and its prediction, with fitted constants if given. Raises PlacementError if there is no plan."""
    if fitted is not None:
        refuse_other_device(fitted, request.topology)
        request = replace(request, topology=replace(request.topology, constants=fitted.calibration.constants))
    started = time.perf_counter()
    inputs = inputs_of(request.loads, request.topology, request.communication, request.replica_groups)
    try:
        plan = make_plan(request.loads, request.topology, request.communication, inputs, request.replica_groups)
    except PlacementError as error:
        raise PlacementError(f"{error}{request.hint}") from None
    prediction = predict(plan, request.loads, request.topology, request.communication)
    warnings = tuple(warnings_of(plan, prediction, request.loads, request.topology))
    return Planned(request, plan, prediction, warnings, time.perf_counter() - started)


def rows_given(rows: list[str]) -> dict[str, int]:
    """Parse TABLE=N. N can be written as 10_000_000 or 1e7."""
    num_rows = {}
    for text in rows:
        name, _, number = text.partition("=")
        try:
            value = float(number.replace(",", ""))
        except ValueError:
            value = 0.0
        if not name or not 1 <= value <= 1e12 or value != int(value):
            raise UserError(
                f"--rows {text}: write it as TABLE=N, with N from 1 to 10^12, such as item=10_000_000 or item=1e7"
            )
        num_rows[name.strip()] = int(value)
    return num_rows


def settings_in(compare: str) -> list[str]:
    """Split "KEY=VALUE,KEY=VALUE" into settings. A comma within a value, as in a list, does not separate settings."""
    settings = [part.strip() for part in re.split(r",(?=\s*[A-Za-z_][\w.]*\s*=)", compare)]
    for setting in settings:
        if not re.match(r"[A-Za-z_][\w.]*\s*=", setting):
            raise UserError(
                f'--compare "{compare}": write it as KEY=VALUE,KEY=VALUE with settings of the config, or {", ".join(OPTIONS)}'
            )
    return settings


def print_for_people(answer: PlanAnswer, console: Console) -> None:
    """Print the tables. For two plans, print the figures side by side and the differences."""
    console.print(answer.planned.title, highlight=False, soft_wrap=True, style="bold")
    if answer.other is not None:
        console.print(f"compared with {answer.compared}", highlight=False, markup=False, soft_wrap=True)
        shown = comparison(answer.planned, answer.other)
    else:
        shown = grids(answer.planned.values)
    if answer.fitted is not None:
        shown = [*shown, *answer.fitted.grids]
    for grid in shown:
        console.print(rich_table(grid), "")
    for planned, name in ((answer.planned, ""), (answer.other, "compared: ")):
        for kind, lines in (("note", planned.request.assumptions), ("warning", planned.warnings)) if planned else ():
            for line in lines:
                console.print(f"{kind}: {name}{line}", highlight=False, markup=False, soft_wrap=True)
    if answer.fitted is not None:
        constants = f"constants: {answer.folder / CALIBRATION}   for runs: plan.calibration"
        console.print(constants, highlight=False, soft_wrap=True)
    console.print(f"plan: {answer.folder / PLAN}   picture: {answer.folder / PAGE}", highlight=False, soft_wrap=True)


def json_of(answer: PlanAnswer) -> dict[str, Any]:
    """Return the result as one object, for --json."""
    values = {**answer.planned.values, "plan": str(answer.folder / PLAN), "page": str(answer.folder / PAGE)}
    if answer.other is not None:
        values["compared"] = {"settings": answer.compared, **answer.other.values}
    if answer.fitted is not None:
        values["calibration"] = {**answer.fitted.values(), "file": str(answer.folder / CALIBRATION)}
    return values


def comparison(left: Planned, right: Planned) -> list[Grid]:
    """Return both plans in one grid, and the tables that are placed differently."""
    return [summary_grid([left.values, right.values], NAMES), difference_grid(left.values, right.values, NAMES)]


def _write(answer: PlanAnswer) -> None:
    plans = {"plan": answer.planned} | ({"plan-compared": answer.other} if answer.other is not None else {})
    pictures = {
        stem: picture(planned.plan, planned.prediction, planned.request.topology, planned.title)
        for stem, planned in plans.items()
    }
    try:
        answer.folder.mkdir(parents=True, exist_ok=True)
        for stem, planned in plans.items():
            write_json_atomically(answer.folder / f"{stem}.json", planned.plan.values())
            write_text_atomically(answer.folder / f"{stem}.svg", pictures[stem])
        if answer.fitted is not None:
            write_json_atomically(answer.folder / CALIBRATION, answer.fitted.values())
        write_text_atomically(answer.folder / PAGE, _page(answer, list(plans.values()), list(pictures.values())))
    except OSError as error:
        raise UserError(
            f"{answer.folder}: the plan cannot be written ({error.strerror}); choose another --out"
        ) from None


def _tiles(planned: Planned) -> list[dict[str, str]]:
    """Return the headline figures of a plan. They are predictions and have no interval."""
    values = _summary(planned)
    return [{"name": name, "value": values[name], "interval": "", "note": ""} for name in HEADLINES]


def _summary(planned: Planned) -> dict[str, str]:
    """Return the headline figures of one plan by name."""
    return {row[0]: row[1] for row in summary_grid([planned.values]).rows}


def _page(answer: PlanAnswer, plans: list[Planned], pictures: list[str]) -> str:
    """Return plan.html, with one picture or two."""
    names = ["", ""] if len(plans) == 1 else [NAMES[0], f"{NAMES[1]}: {answer.compared}"]
    return page.render(
        Path(__file__).parent,
        "plan.html.j2",
        title=f"Plan of {answer.planned.request.name}",
        header=[
            ("Workload", answer.planned.request.name),
            ("Devices", _summary(answer.planned)["devices"]),
            ("Planned", f"{moment_text(time.time())}, in {answer.planned.seconds:.1f} s"),
        ],
        comparison=comparison(*plans) if len(plans) > 1 else [],
        plans=[
            {
                "name": name,
                "picture": page.Plot(Markup(svg), f"Memory and time of each rank. {planned.title}."),
                "tiles": _tiles(planned),
                "grids": grids(planned.values),
                "lines": [*planned.request.assumptions, *planned.warnings],
            }
            for name, planned, svg in zip(names, plans, pictures, strict=False)
        ],
    )


def rich_table(grid: Grid) -> Table:
    """Return a grid for the terminal."""
    table = Table(
        title=grid.title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        show_header=any(grid.header),
        padding=(0, 1, 0, 0),
    )
    for number, name in enumerate(grid.header):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=number > 0)
    for row in grid.rows:
        table.add_row(*row)
    return table
