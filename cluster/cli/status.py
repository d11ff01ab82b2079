"""`shoal status`: the state of a run."""

import json
from pathlib import Path

from cluster.cli.options import AsJson, RunFolder, console_for, print_json
from trainer.errors import UserError


def status(run_dir: RunFolder, as_json: AsJson = False) -> None:
    """Show the stages of a run, its newest metrics and its checkpoints."""
    from cluster.driver.run_folder import Stages
    from trainer.checkpoint import folder as checkpoint_folder
    from trainer.metrics_log import read_metrics

    folder = Path(run_dir)
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: no config.json, so this is no run folder")
    lines = read_metrics(folder / "metrics.jsonl")
    newest = {kind: row for row in lines if (kind := row["kind"])}
    values = {
        "stages": Stages(folder).statuses(),
        "checkpoints": [path.name for path in checkpoint_folder.committed(folder / "checkpoints")],
        "best": checkpoint_folder.read_best(folder / "checkpoints"),
        "newest": newest,
    }
    if as_json:
        print_json(values)
        return
    console = console_for(False)
    for name, value in values.items():
        console.print(f"{name}: {json.dumps(value)}", highlight=False, soft_wrap=True)
