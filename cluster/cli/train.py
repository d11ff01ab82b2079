"""`shoal train`: training on a prepared dataset."""

from dataclasses import asdict

from cluster.cli.options import AsJson, ConfigFile, Overrides, in_view, load, print_json
from cluster.doctor.packages import TRAINING, check_installed


def train(config: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train on the prepared dataset, from the newest checkpoint if there is one."""
    settings = load(config, overrides)
    check_installed("train", TRAINING)
    from cluster.driver import driver

    outcome = in_view(as_json, lambda view: driver.run_train(settings, view))
    if as_json:
        print_json({"run_dir": str(settings.run_dir), **asdict(outcome)})
