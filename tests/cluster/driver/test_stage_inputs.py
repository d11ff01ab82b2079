"""A stage is done again when anything changes that its result depends on: nothing stale is shown as current."""

import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cluster.config.run_config import Config, check_config
from cluster.driver import evaluate_stage, stage_inputs, train_stage
from cluster.driver.progress import View
from cluster.driver.stage_inputs import evaluation_inputs, report_inputs, training_inputs
from tests.support.datasets import tiny_dataset
from trainer.checkpoint.folder import CheckpointManifest, StoredCheckpoint, name_of
from trainer.config.job import Outcome
from trainer.data.dataset import card
from trainer.data.dataset.manifest import Manifest, read_manifest, write_manifest
from trainer.evaluation.next_item.results import Results
from trainer.storage.files import write_json_atomically


def config_of(folder: Path, **sections: dict[str, Any]) -> Config:
    values = {"run": {"dir": str(folder / "run"), "dataset": str(folder / "dataset")}, "logs": {"path": "unused"}}
    return check_config({**values, **sections}, "test")


def found_of(step: int = 4, content: str = "aa") -> StoredCheckpoint:
    files = {"data": {"sha256": content, "num_bytes": 1}}
    return StoredCheckpoint(Path(name_of(step)), CheckpointManifest(step, 1, 1, {}, {}, {}, "digest", {}, {}, files))


def appended(folder: Path) -> Manifest:
    """Change the dataset as an append does: its digest differs."""
    manifest = read_manifest(folder)
    changed = replace(manifest, parts=(replace(manifest.parts[0], sha256="0" * 64), *manifest.parts[1:]))
    write_manifest(folder, changed)
    assert changed.digest != manifest.digest
    return changed


@pytest.fixture
def here(tmp_path: Path) -> Path:
    tiny_dataset(tmp_path / "dataset")
    (tmp_path / "run").mkdir()
    return tmp_path


class Evaluations:
    """Stands in for the workers: writes what an evaluation leaves, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_evaluated = self.num_reports = 0
        self.found = found_of()
        monkeypatch.setattr(evaluate_stage, "find_checkpoint", lambda config, name, on_event: self.found)
        monkeypatch.setattr(evaluate_stage, "evaluate", self.evaluate)
        monkeypatch.setattr(evaluate_stage, "write_report", self.write_report)

    def evaluate(self, config: Config, splits: list[str], *_: Any) -> dict[str, Results]:
        self.num_evaluated += 1
        results = {}
        for split in splits:
            folder = config.run_dir / "evaluation" / split
            folder.mkdir(parents=True, exist_ok=True)
            metrics = {"mrr": 0.1 * self.num_evaluated}
            results[split] = Results("next_item", split, "step", {}, 1, 1, 0, metrics, {}, {}, {}, [])
            write_json_atomically(folder / "metrics.json", asdict(results[split]))
            pq.write_table(pa.table({"user": [1]}), folder / "per_user.parquet")
            (folder / "examples.json").write_text("[]")
            (folder / "report.html").write_text("page")
        return results

    def write_report(self, *_: Any) -> None:
        self.num_reports += 1

    def run(self, config: Config) -> float:
        with View(Console(file=io.StringIO())) as view:
            evaluated: Any = evaluate_stage.run_evaluate_stages(config, ["test"], None, None, view)["test"][0]  # type: ignore[arg-type]
        return float(evaluated.metrics["mrr"])


def change_dataset(here: Path, evaluations: Evaluations) -> None:
    appended(here / "dataset")


def change_checkpoint(here: Path, evaluations: Evaluations) -> None:
    evaluations.found = found_of(content="bb")


def change_metrics_file(here: Path, evaluations: Evaluations) -> None:
    path = here / "run/evaluation/test/metrics.json"
    path.write_text(path.read_text().replace("0.1", "0.9"))


def remove_user_file(here: Path, evaluations: Evaluations) -> None:
    (here / "run/evaluation/test/per_user.parquet").unlink()


def remove_report(here: Path, evaluations: Evaluations) -> None:
    (here / "run/evaluation/test/report.html").unlink()


@pytest.mark.parametrize(
    "change", [change_dataset, change_checkpoint, change_metrics_file, remove_user_file, remove_report]
)
def test_an_evaluation_is_repeated_when_its_inputs_have_changed(
    here: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, Evaluations], None]
) -> None:
    evaluations = Evaluations(monkeypatch)
    config = config_of(here)
    assert evaluations.run(config) == evaluations.run(config) == 0.1
    assert evaluations.num_evaluated == 1
    change(here, evaluations)
    assert evaluations.run(config) == 0.2
    assert evaluations.run(config) == 0.2
    assert evaluations.num_evaluated == 2


@pytest.mark.parametrize(
    "sections",
    [{"evaluate": {"mask_seen": False}}, {"evaluate": {"ks": [3, 10]}}, {"model": {"max_history": 7}}],
    ids=["seen items", "cut-offs", "history"],
)
def test_an_evaluation_is_done_again_under_other_settings(
    here: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    evaluations = Evaluations(monkeypatch)
    evaluations.run(config_of(here))
    evaluations.run(config_of(here, **sections))
    assert evaluations.num_evaluated == 2


def test_an_evaluation_of_a_version_with_other_metrics_is_done_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations = Evaluations(monkeypatch)
    evaluations.run(config_of(here))
    monkeypatch.setattr(stage_inputs, "FIGURES_VERSION", stage_inputs.FIGURES_VERSION + 1)
    evaluations.run(config_of(here))
    assert evaluations.num_evaluated == 2


def test_a_report_is_written_again_after_more_training_of_the_same_best_checkpoint(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its curves and its config are not those of before; the figures are."""
    evaluations, config = Evaluations(monkeypatch), config_of(here)
    evaluations.run(config)
    evaluations.run(config)
    assert evaluations.num_reports == 0
    (here / "run/metrics.jsonl").write_text(json.dumps({"step": 9, "kind": "train", "loss": 1.0}))
    evaluations.run(config)
    evaluations.run(config)
    assert (evaluations.num_evaluated, evaluations.num_reports) == (1, 1)
    evaluations.run(config_of(here, train={"epochs": 77}))
    assert (evaluations.num_evaluated, evaluations.num_reports) == (1, 2)


def test_training_resumes_if_its_last_checkpoint_is_missing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, manifest, trained = config_of(here), read_manifest(here / "dataset"), []
    checkpoints = here / "run/checkpoints"

    def train(*_: Any) -> Outcome:
        trained.append(1)
        for step in (4, 8):
            (checkpoints / name_of(step)).mkdir(parents=True, exist_ok=True)
            (checkpoints / name_of(step) / "manifest.json").write_text("{}")
        return Outcome("finished", 8, None, None)

    def run(given: Manifest = manifest) -> None:
        with View(Console(file=io.StringIO())) as view:
            train_stage.run_train_stage(config, given, None, view)  # type: ignore[arg-type]

    monkeypatch.setattr(train_stage, "train", train)
    run()
    run()
    assert len(trained) == 1
    (checkpoints / name_of(8) / "manifest.json").unlink()
    run()
    assert len(trained) == 2
    run(appended(here / "dataset"))
    assert len(trained) == 3


def test_inputs_of_training_hold_dataset_and_settings(here: Path) -> None:
    manifest = read_manifest(here / "dataset")
    settings: list[dict[str, Any]] = [
        {},
        {"train": {"epochs": 9}},
        {"train": {"learning_rate": 0.5}},
        {"model": {"max_history": 7}},
    ]
    digests = [training_inputs(config_of(here, **sections), manifest) for sections in settings]
    digests.append(training_inputs(config_of(here), appended(here / "dataset")))
    assert len(set(digests)) == len(digests)
    same = training_inputs(config_of(here, train={"log_every_steps": 3}, cluster={"num_workers": 3}), manifest)
    assert same == digests[0]


def test_inputs_of_evaluation_and_report_hold_all_that_they_show(here: Path) -> None:
    config, manifest = config_of(here), read_manifest(here / "dataset")
    of_test = evaluation_inputs(config, found_of(), manifest, "test")
    others = [
        evaluation_inputs(config, found_of(), manifest, "validation"),
        evaluation_inputs(config, found_of(step=5), manifest, "test"),
        evaluation_inputs(config, found_of(content="cc"), manifest, "test"),
    ]
    sampled = replace(manifest, labels={"negative_sampling_rate": 0.5})
    others.append(evaluation_inputs(config, found_of(), sampled, "test"))
    assert len({of_test, *others}) == 5
    more_read = replace(manifest, counts=replace(manifest.counts, rows_read=manifest.counts.rows_read + 1))
    reports = [
        report_inputs(config, *given) for given in ((of_test, manifest), (of_test, more_read), (others[0], manifest))
    ]
    assert len(set(reports)) == 3


def test_a_card_of_another_version_is_written_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, manifest = here / "dataset", read_manifest(here / "dataset")
    values = {"digest": manifest.digest, "fingerprint": manifest.fingerprint, "checks": []}
    write_json_atomically(folder / card.VALUES, {**values, "version": card.CARD_VERSION})
    (folder / card.PAGE).write_text("page")
    assert card.read_checks(folder, manifest) == ()
    all_rejected = replace(manifest, fingerprint="of one more file, of which no row was kept")
    assert card.read_checks(folder, all_rejected) is None
    monkeypatch.setattr(card, "CARD_VERSION", card.CARD_VERSION + 1)
    assert card.read_checks(folder, manifest) is None
    write_json_atomically(folder / card.VALUES, values)  # before cards had a version
    assert card.read_checks(folder, manifest) is None
