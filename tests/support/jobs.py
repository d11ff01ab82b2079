"""Small jobs for tests that run the trainer without Ray."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.config.run_config import Config, check_config, job_of
from trainer.config.job import Job


def tiny_job(run_dir: Path, dataset_dir: Path, **sections: dict[str, Any]) -> Job:
    """Return a job of a few seconds; `sections` override settings, such as train={"epochs": 3}."""
    return job_of(tiny_config(run_dir, dataset_dir, **sections))


def tiny_config(run_dir: Path, dataset_dir: Path, **sections: dict[str, Any]) -> Config:
    """Return the config of such a job."""
    values: dict[str, dict[str, Any]] = {
        "run": {"dir": str(run_dir), "dataset": str(dataset_dir), "seed": 5},
        "logs": {"path": "unused"},
        "model": {"max_history": 8, "encoder": {"kind": "sasrec", "num_blocks": 1, "dropout": 0.0}},
        "tables": {"item": {"dim": 8, "learning_rate": 0.1}},
        "train": {
            "epochs": 3,
            "batch_size": 8,
            # Half of a tiny run's time would go into evaluations and the checkpoints that come with them.
            "evaluate_every_epochs": 3,
            "log_every_steps": 1,
            "sample_log": True,
            "early_stopping": None,
        },
        "evaluate": {"ks": [5, 10], "batch_size": 16},
        "plan": {"measure": False},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    # Left to itself the plan would copy tables as small as these to every worker, and nothing would be sharded.
    tables = values["tables"]
    values["tables"] = {**tables, "item": {"sharding": "row_wise", **tables.get("item", {})}}
    return check_config(values, "test")


def with_sections(job: Job, **sections: Any) -> Job:
    """Return the job with other sections of its config, as models, unchecked. Its identity stays."""
    return replace(job, config=job.config.model_copy(update=sections))
