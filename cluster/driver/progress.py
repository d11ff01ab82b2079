"""Progress of a command: one live line in a terminal, a line every few seconds in a log, and the table of results."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from trainer.evaluation.next_item.baselines.notes import strongest_baseline
from trainer.evaluation.next_item.results import Results, table_names
from trainer.evaluation.ranking.results import RankingResults
from trainer.loop.stragglers import straggler_text
from trainer.restart_log import recovery_text
from trainer.tasks.metrics import headline_names
from trainer.tasks.results import Summary

LOG_EVERY_SECONDS = 10.0
STAGE_WIDTH = 9  # columns of the live line for the name of the stage
BAR_WIDTH = 20
HEADLINE_METRICS = 3  # in the last lines of a command
MAX_BASELINES = 3  # columns of a table on a terminal; the report shows all


def plain_console(**options: Any) -> Console:
    """Return a console that prints text unchanged: names of columns, items and files may contain rich's markup."""
    return Console(markup=False, emoji=False, **options)


class View:
    """Shows stages and events on one console. Use as a context manager around the work."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = console.is_terminal
        self._bar = Progress(
            TextColumn(f"{{task.description:>{STAGE_WIDTH}}}", markup=False),
            BarColumn(bar_width=BAR_WIDTH),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
        )
        self._task: TaskID | None = None
        self._logged = 0.0
        self._keep: Callable[[str], None] = lambda text: None

    def __enter__(self) -> "View":
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()
        if self._live:
            self._bar.stop()

    def print_line(self, text: str) -> None:
        """Print a line that stays."""
        self._keep(text)
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def keep_lines(self, keep: Callable[[str], None]) -> None:
        """Call `keep` with each line that stays, from now on."""
        self._keep = keep

    def print_phase(self, text: str) -> None:
        """Print a line for a phase that takes seconds and has no progress of its own."""
        self.clear()
        self.print_line(f"{text} ...")

    def update(self, stage: str, done: int, total: int, *parts: str) -> None:
        """Show how far a stage is: in a terminal on the live line, in a log every few seconds.

        Args:
            stage: its name.
            done: units done.
            total: units in all.
            parts: figures, the most important first; the live line leaves out the last ones that do not fit.
        """
        if self._live:
            text = fitting(parts, self.console.width - STAGE_WIDTH - BAR_WIDTH - 3)
            if self._task is None:
                self._task = self._bar.add_task(stage, total=total, text=text)
            self._bar.update(self._task, description=stage, completed=done, total=total, text=text)
        elif time.monotonic() - self._logged > LOG_EVERY_SECONDS:
            self._logged = time.monotonic()
            self.print_line(f"{stage} {done:,}/{total:,} {'  '.join(parts)}")

    def clear(self) -> None:
        """Remove the live line at the end of a stage."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
            if self._live:
                self._bar.refresh()  # otherwise the next line that is printed draws the old bar again

    def on_event(self, event: dict[str, Any]) -> None:
        """Show an event that a worker sent (trainer.config.job.Channel)."""
        match event["kind"]:
            case "train":
                self._show_step(event)
            case "validation":
                best = " (best)" if event["best"]["step"] == event["step"] else ""
                self.print_line(f"validation at step {event['step']:,}: {_figures(event['metrics'])}{best}")
            case "progressive":
                self.print_line(f"day {event['begins']}, before training on it: {_figures(event['metrics'])}")
            case "evaluate" | "validate" as stage:
                self.update(stage, event["done"], event["total"], f"batch {event['done']:,}/{event['total']:,}")
            case "recommend":
                parts = f"batch {event['done']:,}/{event['total']:,}", f"{event['owners']:,} lists"
                self.update("recommend", event["done"], event["total"], *parts)
            case "explain":
                parts = f"batch {event['done']:,}/{event['total']:,}", f"{event['owners']:,} users"
                self.update("explain", event["done"], event["total"], *parts)
            case "contributions":
                part = f"evaluation {event['done']:,}/{event['total']:,}"
                self.update("prune", event["done"], event["total"], part)
            case "stage":
                pass  # for programs: people read the lines of each stage
            case "plan":
                shardings = Counter(event["tables"].values())
                layout = ", ".join(f"{number} {sharding}" for sharding, number in sorted(shardings.items()))
                number = sum(shardings.values())
                self.print_line(f"plan: {number} table{'s' * (number > 1)}: {layout}")
            case "phase":
                self.print_phase(event["text"])
            case "restart":
                self.clear()
                self.print_line(event["text"])
            case "recovered":
                self.clear()
                self.print_line(recovery_text(event["seconds"], event["steps"], event["rows"]))
            case "straggler":
                self.clear()
                self.print_line(f"warning: {straggler_text(event)}")
            case "resumed":
                self.print_line(f"resumed from {event['path']}")
            case "warning":
                self.print_line(f"warning: {event['text']}")

    def _show_step(self, event: dict[str, Any]) -> None:
        self.update(
            "train",
            event["step"],
            event["total_steps"],
            f"step {event['step']:,}/{event['total_steps']:,}",
            f"loss {event['loss']:.4f}",
            f"{time.strftime('%H:%M:%S', time.gmtime(event['seconds_left']))} left",
            f"{event['events_per_second']:,.0f} events/s",
            f"day {event['day']}" if "day" in event else f"epoch {event['epoch'] + 1}",
            f"next checkpoint at {event['next_checkpoint']:,}",
        )


def announce(view: View, stage: str, status: str) -> None:
    """Send an event that a stage has "started", is "done", or was "done before"."""
    view.on_event({"kind": "stage", "stage": stage, "status": status})


def fitting(parts: Sequence[str], width: int) -> str:
    """Join the first parts that fit into `width` columns, two spaces between them; the first part always stays."""
    text = parts[0] if parts else ""
    for part in parts[1:]:
        if len(text) + 2 + len(part) > width:
            break
        text = f"{text}  {part}"
    return text


def _figures(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {metrics[name]:.4f}" for name in headline_names(metrics) or metrics)


def results_table(results: Summary) -> Table:
    """Return a table of the model's metrics with their intervals, and of the baselines'."""
    of = f"{results.num_targets:,} impressions" if isinstance(results, RankingResults) else _catalogue(results)
    table = Table(title=f"{results.split}: {results.num_users:,} users, {of}")
    table.add_column("metric", no_wrap=True)
    shown = shown_baselines(results)
    for heading in ("model", "95 % interval", *shown):
        table.add_column(heading, justify="right")
    names = list(results.metrics) if isinstance(results, RankingResults) else table_names(results)[0]
    for name in names:
        bounds = results.ci95.get(name)
        interval = f"{bounds[0]:.4f} - {bounds[1]:.4f}" if bounds else ""
        value = results.metrics[name]
        baselines = (_figure(results.baselines[baseline][name]) for baseline in shown)
        table.add_row(name, _figure(value), interval, *baselines)
    return table


def headline(results: Summary) -> str:
    """Return one line with the most important metrics of an evaluation; the first ones of many.

    It stands below the table, and stays in sight where the table is longer than the terminal.
    """
    metrics = results.metrics
    names = [name for name in headline_names(metrics) or metrics if metrics[name] is not None]
    return f"{results.split}: {'; '.join(_with_baselines(results, name) for name in names[:HEADLINE_METRICS])}"


def _with_baselines(results: Summary, name: str) -> str:
    """Return a metric with its interval, and its value of each shown baseline."""
    bounds = results.ci95.get(name)
    interval = f" [{bounds[0]:.4f}, {bounds[1]:.4f}]" if bounds else ""
    baselines = {baseline: results.baselines[baseline].get(name) for baseline in shown_baselines(results)}
    others = [f"{baseline} {_figure(value)}" for baseline, value in baselines.items() if value is not None]
    return ", ".join([f"{name} {_figure(results.metrics[name])}{interval}", *others])


def shown_baselines(results: Summary) -> list[str]:
    """Return the baselines that fit a terminal: all if there are few, else the first one and the strongest other one."""
    names = list(results.baselines)
    if len(names) <= MAX_BASELINES:
        return names
    metric = next(iter(headline_names(results.metrics)), next(iter(results.metrics)))
    others = {name: results.baselines[name] for name in names[1:]}
    strongest = strongest_baseline(others, metric)
    return [names[0], *([strongest] if strongest is not None else [])]


def _catalogue(results: Results) -> str:
    return f"full catalogue of {results.protocol['catalogue']:,} items"


def _figure(value: float | None) -> str:
    """Return a metric as text; empty if it is undefined, such as the auc of positives alone."""
    return "" if value is None else f"{value:.4f}"
