"""What a person sees while a command runs: one live line in a terminal, a line now and then in a log."""

import time
from collections import Counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from trainer.evaluation.next_item.results import Results
from trainer.evaluation.ranking.results import RankingResults
from trainer.tasks.metrics import headline_names
from trainer.tasks.outputs import Summary

LOG_EVERY_SECONDS = 10.0


def plain_console(**options: Any) -> Console:
    """Return a console that prints text as it is: names of columns, items and files may hold what rich takes for markup."""
    return Console(markup=False, emoji=False, **options)


class View:
    """Shows stages and events on one console. Use as a context manager around the work."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description:>10}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
        )
        self._task: TaskID | None = None
        self._logged = 0.0

    def __enter__(self) -> "View":
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.done()
        if self._live:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def advance(self, stage: str, done: int, total: int, text: str) -> None:
        """The live line: in a terminal always, in a log every few seconds."""
        if self._live:
            if self._task is None:
                self._task = self._bar.add_task(stage, total=total, text=text)
            self._bar.update(self._task, description=stage, completed=done, total=total, text=text)
        elif time.monotonic() - self._logged > LOG_EVERY_SECONDS:
            self._logged = time.monotonic()
            self.say(f"{stage} {done:,}/{total:,} {text}")

    def done(self) -> None:
        """The end of a stage: its live line goes."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def on_event(self, event: dict[str, Any]) -> None:
        """An event that a worker sent (trainer.job.Channel)."""
        match event["kind"]:
            case "train":
                where = f"day {event['day']}" if "day" in event else f"epoch {event['epoch'] + 1}"
                left = time.strftime("%H:%M:%S", time.gmtime(event["seconds_left"]))
                text = (
                    f"step {event['step']:,}/{event['total_steps']:,}  {where}  loss {event['loss']:.4f}  "
                    f"{event['events_per_second']:,.0f} events/s  {left} left  next checkpoint at {event['next_checkpoint']:,}"
                )
                self.advance("train", event["step"], event["total_steps"], text)
            case "validation":
                best = " (best)" if event["best"]["step"] == event["step"] else ""
                figures = _figures(event["metrics"])
                self.say(f"validation at step {event['step']:,}: {figures}{best}")
            case "progressive":
                self.say(f"day {event['begins']}, before it is trained: {_figures(event['metrics'])}")
            case "evaluate":
                self.advance("evaluate", event["done"], event["total"], f"batch {event['done']:,}/{event['total']:,}")
            case "plan":
                lies = Counter(event["tables"].values())
                layout = ", ".join(f"{number} {sharding}" for sharding, number in sorted(lies.items()))
                self.say(f"plan: {sum(lies.values())} table{'s' * (sum(lies.values()) > 1)}: {layout}")
            case "resumed":
                self.say(f"resumed from {event['path']}")
            case "warning":
                self.say(f"warning: {event['text']}")


def _figures(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {metrics[name]:.4f}" for name in headline_names(metrics) or metrics)


def results_table(results: Summary) -> Table:
    """The model beside the baselines."""
    of = f"{results.num_targets:,} impressions" if isinstance(results, RankingResults) else _catalogue(results)
    table = Table(title=f"{results.split}: {results.num_users:,} users, {of}")
    table.add_column("metric", no_wrap=True)
    for heading in ("model", "95 % interval", *results.baselines):
        table.add_column(heading, justify="right")
    for name, value in results.metrics.items():
        bounds = results.ci95.get(name)
        interval = f"{bounds[0]:.4f} - {bounds[1]:.4f}" if bounds else ""
        table.add_row(name, _figure(value), interval, *(_figure(values[name]) for values in results.baselines.values()))
    return table


def _catalogue(results: Results) -> str:
    return f"full catalogue of {results.protocol['catalogue']:,} items"


def _figure(value: float | None) -> str:
    """Nothing for what is not defined, such as the auc of positives alone."""
    return "" if value is None else f"{value:.4f}"
