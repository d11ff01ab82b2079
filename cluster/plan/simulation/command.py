"""`shoal plan --simulate`: predictions for several numbers of workers, their files, and the results for people and programs.

FOLDER/simulation.json   all figures, constants with their sources, and assumptions
FOLDER/simulation.html   tables and plots of the same
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.plan.calibration import fit
from cluster.plan.command import rich_table, rows_given
from cluster.plan.grids import Grid
from cluster.plan.simulation.config import read_constants_file
from cluster.plan.simulation.report import assumptions, constants_rows, grids, warnings
from cluster.plan.simulation.simulate import MOST_WORKERS, WORKERS, Scaling, Simulation, read_base, simulate
from sharding.planning.units import count_text, seconds_text
from trainer.errors import UserError
from trainer.pages import page
from trainer.pages.text import moment_text
from trainer.storage.files import write_json_atomically, write_text_atomically
from trainer.storage.objects.paths import local_path

VALUES = "simulation.json"
PAGE = "simulation.html"


@dataclass(frozen=True)
class SimulationAnswer:
    """A simulation, and the folder with its files."""

    simulation: Simulation
    folder: Path

    @property
    def values(self) -> dict[str, Any]:
        """Return everything as plain values."""
        simulation = self.simulation
        return {
            **simulation.values(),
            "assumptions": assumptions(simulation),
            "warnings": list(warnings(simulation)),
        }


def run(
    path: str,
    settings: list[str],
    rows: list[str],
    workers: str | None,
    scaling: Scaling,
    constants_file: str | None,
    out: str | None,
    calibrate: Sequence[str] = (),
) -> SimulationAnswer:
    """Simulate and write the files. Raises UserError or PlacementError for mistakes of the user.

    Args:
        path: the config of a run.
        settings: KEY=VALUE, of the config and of the simulation.
        rows: TABLE=N, for tables of unknown size.
        workers: numbers of workers, separated by commas; None: powers of two up to 1,024.
        scaling: weak keeps the batch per worker, strong the global batch.
        constants_file: TOML file with constants.
        out: the folder of the files.
        calibrate: folders of measured runs.
    """
    numbers = WORKERS if workers is None else workers_given(workers)
    constants, rest = read_constants_file(constants_file, settings)
    fitted = fit(calibrate) if calibrate else None
    base = read_base(path, rest, rows_given(rows), constants, scaling, calibrate, fitted)
    simulation = simulate(base, numbers, fitted)
    folder = local_path(out, "--out") if out is not None else base.request.folder
    answer = SimulationAnswer(simulation, folder)
    _write(answer)
    return answer


def workers_given(text: str) -> tuple[int, ...]:
    """Parse numbers of workers, such as "1,2,4"."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if not all(1 <= number <= MOST_WORKERS for number in numbers):
        raise UserError(
            f"--workers {text}: write numbers from 1 to {MOST_WORKERS:,}, separated by commas, such as 1,2,4,8"
        )
    return tuple(sorted(set(numbers)))


def print_for_people(answer: SimulationAnswer, console: Console) -> None:
    """Print the tables, the constants and the assumptions."""
    simulation = answer.simulation
    console.print(_title(simulation), highlight=False, soft_wrap=True, style="bold")
    for grid in grids(simulation):
        console.print(rich_table(grid), "")
    rows = tuple((name, value, source) for name, value, source in constants_rows(simulation))
    for name, value, source in rows:
        console.print(f"constant: {name} = {value}   {source}", highlight=False, markup=False, soft_wrap=True)
    for kind, lines in (("assumption", assumptions(simulation)), ("warning", warnings(simulation))):
        for line in lines:
            console.print(f"{kind}: {line}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"simulation: {answer.folder / VALUES}   page: {answer.folder / PAGE}", highlight=False, soft_wrap=True
    )


def json_of(answer: SimulationAnswer) -> dict[str, Any]:
    """Return the result as one object, for --json."""
    return {**answer.values, "file": str(answer.folder / VALUES), "page": str(answer.folder / PAGE)}


def _title(simulation: Simulation) -> str:
    """Return the most important figures in one line."""
    last = simulation.points[-1]
    return (
        f"{simulation.name}, {simulation.scaling} scaling to {last.workers:,} workers: {seconds_text(last.step_seconds)} a step, "
        f"efficiency {last.efficiency:.1%}, goodput {last.failures.goodput:.2%}"
    )


def _write(answer: SimulationAnswer) -> None:
    try:
        answer.folder.mkdir(parents=True, exist_ok=True)
        write_json_atomically(answer.folder / VALUES, answer.values)
        write_text_atomically(answer.folder / PAGE, _page(answer.simulation))
    except OSError as error:
        raise UserError(
            f"{answer.folder}: the simulation cannot be written ({error.strerror}); choose another --out"
        ) from None


def _page(simulation: Simulation) -> str:
    """Return simulation.html."""
    from cluster.plan.simulation.drawing import plots  # loads matplotlib

    facts = simulation.facts
    last = simulation.points[-1]
    shown: list[Grid] = grids(simulation)
    return page.render(
        Path(__file__).parent.parent,
        "simulation.html.j2",
        title=f"Scaling of {simulation.name}",
        header=[
            ("Config", simulation.name),
            ("Dense weights", count_text(facts["dense_parameters"])),
            ("Tables", f"{count_text(facts['table_rows'])} rows, {count_text(facts['table_parameters'])} weights"),
            (
                "Examples",
                f"{facts['events_per_example']:,.0f} input events on average, at most {facts['longest_example']:,.0f}",
            ),
            ("Simulated", moment_text(time.time())),
        ],
        tiles=[
            {
                "name": f"efficiency, {last.workers:,} workers",
                "value": f"{last.efficiency:.1%}",
                "interval": "",
                "note": "",
            },
            {
                "name": f"step, {last.workers:,} workers",
                "value": seconds_text(last.step_seconds),
                "interval": "",
                "note": "",
            },
            {
                "name": f"goodput, {last.workers:,} workers",
                "value": f"{last.failures.goodput:.2%}",
                "interval": "",
                "note": "",
            },
            {"name": "events/s kept", "value": count_text(last.kept_events_per_second), "interval": "", "note": ""},
        ],
        warnings=list(warnings(simulation)),
        plots=plots(simulation),
        grids=shown,
        constants=constants_rows(simulation),
        assumptions=assumptions(simulation),
    )
