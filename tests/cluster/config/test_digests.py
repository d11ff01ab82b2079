"""Digests of the configs in configs/: existing runs, datasets and stages are recognised by them.

`digests.json` holds the digests. A digest may change only when a setting is added, because a resolved config then holds one more
value; the identities and the inputs of datasets stay. Renamed settings count by their earlier names.
Run this file as a module to print the current digests.
"""

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config.run_config import Config, job_of, load_config
from cluster.driver.stage_inputs import training_inputs
from cluster.study.config import read_study
from cluster.study.trials import plan_trials, what_it_is
from trainer.config.identity import identity
from trainer.config.renamed import EARLIER_NAMES
from trainer.data.dataset.folder import DatasetRequest
from trainer.storage.files import digest_of

ROOT = Path(__file__).parents[3]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.toml"))
PINNED = Path(__file__).with_name("digests.json")


def digests_of(config: Config) -> dict[str, str]:
    """Return the digest of each part of a config that something stored is recognised by."""
    manifest: Any = SimpleNamespace(digest="of a dataset")
    job = job_of(config)
    return {
        "config": job.config_digest,
        "identity": digest_of(identity(config)),
        "identity of the job": digest_of(job.identity),
        "at default": digest_of(sorted(EARLIER_NAMES.get(name, name) for name in job.at_default)),
        "dataset": DatasetRequest(config.logs, config.split, config.ids_of_tables, {}).fingerprint,
        "training": training_inputs(config, manifest),
    }


def digests_of_file(path: Path) -> dict[str, str]:
    """Return the digests of a run's config, or those of all trials of a study together."""
    given = tomllib.loads(path.read_text(encoding="utf-8"))
    if "study" not in given:
        return digests_of(load_config(path, [] if "path" in given.get("logs", {}) else ["logs.path=events.parquet"]))
    trials = plan_trials(read_study(path)).trials
    values = [{**digests_of(trial.config), "trial": digest_of(what_it_is(trial.config))} for trial in trials]
    return {name: digest_of([value[name] for value in values]) for name in values[0]}


@pytest.mark.parametrize("name", CONFIGS)
def test_digests_of_configs_stay_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert digests_of_file(Path("configs") / name) == json.loads(PINNED.read_text(encoding="utf-8"))[name]


if __name__ == "__main__":
    print(json.dumps({name: digests_of_file(Path("configs") / name) for name in CONFIGS}, indent=1))
