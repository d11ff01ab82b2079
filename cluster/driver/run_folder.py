"""Run folder: the config that it holds, and whether a command may use it. No torch.

runs/NAME/  config.json  state.json  plan.json  metrics.jsonl  tensorboard/  checkpoints/  dataset/  evaluation/[CHECKPOINT/]SPLIT/
"""

import json

from cluster.config.run_config import Config, check_config
from cluster.driver.stage_record import StageRecord
from trainer.config.identity import identity
from trainer.errors import UserError
from trainer.settings import changed_settings
from trainer.storage.files import write_json_atomically


def open_run(config: Config) -> None:
    """Record the resolved config in the run folder, or refuse if the folder holds a run with other settings.

    Until a stage has started, the stored settings may be replaced: a first attempt may have had wrong ones.
    """
    check_settings(config)
    write_json_atomically(config.run_dir / "config.json", config.model_dump(mode="json"))


def check_settings(config: Config) -> None:
    """Raise UserError if the run folder holds a run with other settings, of which a stage has started."""
    path = config.run_dir / "config.json"
    if not path.exists() or not StageRecord(config.run_dir).read()["stages"]:
        return
    try:
        saved = check_config(json.loads(path.read_text(encoding="utf-8")), str(path))
    except ValueError as error:
        raise UserError(
            f"run.dir {config.run_dir}: config.json is not JSON ({error}); choose another run.dir"
        ) from None
    changed = changed_settings(identity(saved), identity(config))
    if changed:
        lines = "\n  ".join(changed)
        raise UserError(
            f"run.dir {config.run_dir}: holds a run with other settings:\n  {lines}\n"
            "set them back to continue it, or choose another run.dir"
        )
