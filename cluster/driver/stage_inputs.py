"""Stage inputs: digests of everything that the result of a stage depends on. A stage is done only for inputs with its digest.

No ray, no torch. The invariant: whatever changes a figure, a checkpoint or a page changes the digest of the stage that makes it.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.config.run_config import Config
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.config.identity import identity, is_later_default
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import Split
from trainer.explanation.command.request import Options as ExplainOptions
from trainer.recommend.request import Options
from trainer.restart_log import FILE
from trainer.storage.files import digest_of, hash_file
from trainer.storage.objects.paths import path_of
from trainer.tasks.outputs import FIGURES_VERSION, PAGE_VERSION

RECOMMENDATIONS_VERSION = 1  # raise it when the same request would get other files
EXPLANATIONS_VERSION = 1  # the same for explanations
CONTRIBUTIONS_VERSION = 1  # the same for contributions of heads and blocks
_WRITES_ONLY = {"log_every_steps", "sample_log"}  # of [train]: what is written down of a training, which stays the same


def training_inputs(config: Config, manifest: Manifest) -> str:
    """Return the digest of what a training on a dataset depends on."""
    goal = config.train.model_dump(mode="json", exclude=_WRITES_ONLY)
    goal = {name: value for name, value in goal.items() if not is_later_default(f"train.{name}", value)}
    return digest_of({"goal": goal, "identity": identity(config), "dataset": manifest.digest})


def evaluation_inputs(config: Config, found: StoredCheckpoint, manifest: Manifest, split: Split) -> str:
    """Return the digest of what the evaluation of a checkpoint on one split depends on, baselines included."""
    return digest_of(
        {
            **_of_checkpoint(config, found),
            **_of_evaluation(config),
            "dataset": [
                manifest.digest,
                manifest.split,
                manifest.labels,
                *([manifest.derived] if manifest.derived else []),
            ],
            "split": split,
            "version": FIGURES_VERSION,
        }
    )


def recommend_inputs(config: Config, checkpoint: StoredCheckpoint, manifest: Manifest, options: Options) -> str:
    """Return the digest of what recommendations depend on, the content of given files included."""
    files = {name: path for name, path in (("users", options.users), ("items", options.items)) if path is not None}
    return digest_of(
        {
            **_of_checkpoint(config, checkpoint),
            "dataset": manifest.digest,
            "options": asdict(options),
            "given": {name: _content_of(path_of(path)) for name, path in files.items() if path != "all"},
            "version": RECOMMENDATIONS_VERSION,
        }
    )


def explain_inputs(config: Config, checkpoint: StoredCheckpoint, manifest: Manifest, options: ExplainOptions) -> str:
    """Return the digest of what explanations depend on, the content of a file of users included."""
    return digest_of(
        {
            **_of_checkpoint(config, checkpoint),
            "dataset": manifest.digest,
            "options": asdict(options),
            "users": _content_of(None if options.users is None else path_of(options.users)),
            "version": EXPLANATIONS_VERSION,
        }
    )


def contributions_inputs(config: Config, checkpoint: StoredCheckpoint, manifest: Manifest, metric: str) -> str:
    """Return the digest of what the contributions of heads and blocks depend on."""
    return digest_of(
        {
            **_of_checkpoint(config, checkpoint),
            "dataset": manifest.digest,
            **_of_evaluation(config),
            "metric": metric,
            "version": CONTRIBUTIONS_VERSION,
        }
    )


def report_inputs(config: Config, evaluation: str, manifest: Manifest) -> str:
    """Return the digest of a report: the evaluation that it shows, by its inputs, the config, and the curves so far.

    Restarts count as well, if there were any.
    """
    restarts = _content_of(config.run_dir / FILE)
    return digest_of(
        {
            "evaluation": evaluation,
            "config": config.model_dump(mode="json"),
            "dataset": [manifest.digest, asdict(manifest.counts)],
            "curves": _content_of(config.run_dir / "metrics.jsonl"),
            "version": PAGE_VERSION,
            **({} if restarts is None else {"restarts": restarts}),
        }
    )


def _of_checkpoint(config: Config, checkpoint: StoredCheckpoint) -> dict[str, Any]:
    """Return what identifies a checkpoint and the settings with which its model is built."""
    return {
        "checkpoint": checkpoint.path.name,
        "files": checkpoint.manifest.files,
        "identity": identity(config),
    }


def _of_evaluation(config: Config) -> dict[str, Any]:
    """Return the settings of evaluation, and the content of the file that they name."""
    return {
        "evaluate": config.evaluate.model_dump(mode="json"),
        "candidates": _content_of(config.evaluate.candidates_file),
    }


def _content_of(path: Path | None) -> str | None:
    return hash_file(path) if path is not None and path.exists() else None
