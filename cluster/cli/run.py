"""`shoal run`: all stages of a run."""

from dataclasses import asdict

from cluster.cli.options import AsJson, ConfigFile, Overrides, console_for, in_view, load, print_json
from cluster.doctor.packages import TRAINING, check_installed


def run(config: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Prepare, train, evaluate and report. Run it again to resume."""
    settings = load(config, overrides)
    check_installed("run", TRAINING)
    from cluster.driver import driver
    from cluster.driver.progress import headline, results_table

    finished = in_view(as_json, lambda view: driver.run(settings, view))
    if as_json:
        values = {"results": asdict(finished.results), "training": asdict(finished.outcome)}
        print_json({**values, "run_dir": str(settings.run_dir), "report": str(finished.report)})
    else:
        console = console_for(False)
        console.print(results_table(finished.results))
        console.print(headline(finished.results), highlight=False, soft_wrap=True)
        console.print(f"report: {finished.report}", highlight=False, soft_wrap=True)
