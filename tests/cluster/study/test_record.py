"""A finished trial counts as done only for what it was done for, and while its folder holds what it left."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cluster.study import record as record_module
from cluster.study.record import Record, begun, digest_for, is_current, read_record, results_of, write_record
from cluster.study.trials import Trial
from tests.support.studies import plan_of

SPLITS = ["validation", "test"]


def write_figures(run_dir: Path, text: str = "figures") -> None:
    for split in SPLITS:
        folder = run_dir / "evaluation" / split
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.json", "per_user.parquet"):
            (folder / name).write_text(f"{text} {split}")


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return plan_of(tmp_path, '[study.grid]\n"model.max_history" = [4, 5]').trials[0]


def test_a_done_trial_is_kept(tmp_path: Path) -> None:
    write_figures(tmp_path)
    record = Record("done", "d", results=results_of(tmp_path, SPLITS))
    write_record(tmp_path, record)
    held = read_record(tmp_path)
    assert held is not None
    assert asdict(held) == asdict(record)
    assert is_current(held, tmp_path, "d", SPLITS)


def test_other_inputs_or_other_files_make_it_run_again(tmp_path: Path) -> None:
    write_figures(tmp_path)
    record = Record("done", "d", results=results_of(tmp_path, SPLITS))
    assert not is_current(record, tmp_path, "other", SPLITS)
    assert not is_current(replace(record, status="failed"), tmp_path, "d", SPLITS)
    assert not is_current(record, tmp_path, "d", SPLITS[:1])
    write_figures(tmp_path, "of another checkpoint")
    assert not is_current(record, tmp_path, "d", SPLITS)
    (tmp_path / "evaluation/test/metrics.json").unlink()
    assert not is_current(record, tmp_path, "d", SPLITS)
    assert begun(record, "d").results == {}


def test_a_record_of_an_earlier_version_is_read_and_run_again(tmp_path: Path) -> None:
    write_figures(tmp_path)
    record = Record("done", "d")
    values = {name: value for name, value in asdict(record).items() if name != "results"}
    assert Record(**values) == record
    assert not is_current(record, tmp_path, "d", SPLITS)


def test_the_digest_holds_settings_dataset_splits_and_the_version_of_metrics(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {
        digest_for(trial, "data", SPLITS),
        digest_for(trial, "more data", SPLITS),
        digest_for(trial, "data", SPLITS[:1]),
    }
    assert len(digests) == 3
    monkeypatch.setattr(record_module, "FIGURES_VERSION", record_module.FIGURES_VERSION + 1)
    assert digest_for(trial, "data", SPLITS) not in digests
