"""Settings with an earlier name are read wherever settings come from, and digests do not depend on the renaming."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import shoal
from cluster.config.run_config import check_config, job_of, load_config
from trainer.config.renamed import with_earlier_names
from trainer.errors import UserError

LOGS = {"logs": {"path": "events.parquet"}}
EARLIER = {**LOGS, "train": {"ledger": True, "epochs": 3}}
CURRENT = {**LOGS, "train": {"sample_log": True, "epochs": 3}}


def test_an_earlier_name_is_read_from_files_overrides_and_python(tmp_path: Path) -> None:
    expected = check_config(CURRENT, "current")
    assert expected.train.sample_log
    (tmp_path / "earlier.json").write_text(json.dumps(EARLIER))
    (tmp_path / "above.toml").write_text('base = "earlier.json"\n[train]\nsample_log = false')
    assert load_config(tmp_path / "earlier.json") == expected
    assert load_config(tmp_path / "above.toml", ["train.ledger=true"]) == expected
    assert not load_config(tmp_path / "above.toml").train.sample_log
    assert shoal.Config.from_dict(LOGS, ["train.ledger=true", "train.epochs=3"]).train == expected.train
    assert shoal.Config.from_dict(EARLIER).train == expected.train
    assert shoal.Config.from_dict(CURRENT).replace({"train.ledger": False}).train.sample_log is False


def test_a_resolved_config_of_an_earlier_version_is_the_same_run() -> None:
    job = job_of(check_config(CURRENT, "current"))
    values = with_earlier_names(job.config_values)
    assert values["train"]["ledger"] is True
    assert "sample_log" not in values["train"]
    again = job_of(check_config(values, "earlier"))
    assert again == replace(job, config=again.config)
    assert again.config_digest == job.config_digest


def test_both_names_at_once_are_refused() -> None:
    both = {**LOGS, "train": {"ledger": True, "sample_log": False}}
    with pytest.raises(UserError, match=r"train\.ledger: no such setting"):
        check_config(both, "both")
