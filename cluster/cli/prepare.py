"""`shoal prepare`: event logs to a sequence dataset."""

from dataclasses import asdict

from cluster.cli.options import AsJson, ConfigFile, Overrides, in_view, load, print_json
from cluster.doctor.packages import RAY, check_installed


def prepare(config: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check the event logs and write the sequence dataset with its data card."""
    settings = load(config, overrides)
    check_installed("prepare", RAY)
    from cluster.driver import driver
    from trainer.data.dataset.card import PAGE

    manifest = in_view(as_json, lambda view: driver.run_prepare(settings, view))
    if as_json:
        print_json(
            {
                "dataset": str(settings.dataset_dir),
                "counts": asdict(manifest.counts),
                "digest": manifest.digest,
                "card": str(settings.dataset_dir / PAGE),
            }
        )
