"""What the settings' tests see of an evaluation as a stage of its own."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq

import trainer.evaluation.next_item.evaluate
from cluster.config.run_config import Config
from cluster.workers import jobs as works
from tests.settings.lab import Lab
from tests.settings.observations.models import model_of
from tests.settings.observations.training import KERNELS, kernels_that_take_nothing, trained
from trainer.checkpoint import folder as checkpoint_folder
from trainer.config.job import SILENT
from trainer.tasks import outputs


def evaluated(lab: Lab, config: Config) -> Path:
    """Return the folder of an evaluation on the test split, without its page."""
    job = lab.see(trained, config).job
    result, folder = checkpoint_folder.to_evaluate(job.checkpoints_dir, print), job.run_dir / "evaluation" / "test"
    works.evaluate(works.EvaluationJob(job, result, {"test": folder / "parts"}), lab.world, SILENT)
    users = pq.read_table(folder / "parts" / "rank-0.parquet")
    with mock.patch.object(outputs, "write_report", return_value=None):
        outputs.write_outputs(job, "test", result.path.name, folder / "parts")
    pq.write_table(users, folder / "users.parquet")
    return folder


def kernels_asked(lab: Lab, config: Config) -> bool:
    """Return whether encoding of held-out histories offers vectors to all compiled kernels, in a training and in a stage."""
    of_validation: list[str] = []
    of_stage: list[str] = []
    for offers, observe in ((of_validation, trained), (of_stage, evaluated)):
        kernels = kernels_that_take_nothing(offers)
        with mock.patch("trainer.loop.compiled_kernels.kernels_of_ranks", return_value=kernels):
            lab.see(observe, config)
    asked = {*of_validation}
    assert asked == {*of_stage}
    return asked == {*KERNELS} - {"softmax"}


def metrics(lab: Lab, config: Config) -> list[str]:
    """Return the names of the metrics in metrics.json."""
    values = json.loads((lab.see(evaluated, config) / "metrics.json").read_text(encoding="utf-8"))
    return sorted(values["metrics"])


def _users(lab: Lab, config: Config) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(lab.see(evaluated, config) / "users.parquet").to_pylist()
    return rows


def targets_of_users(lab: Lab, config: Config) -> list[int]:
    """Return the number of targets of each user."""
    return [len(row["targets"]) for row in _users(lab, config)]


def queries(lab: Lab, config: Config) -> list[tuple[str, int]]:
    """Return the user and the length of the history of each query."""
    return sorted((row["user"], row["history_length"]) for row in _users(lab, config))


def queries_by_hand(lab: Lab, config: Config) -> list[tuple[str, int]]:
    """Return the same for one query per test event."""
    parts = [
        row for part in lab.manifest(config).parts for row in pq.read_table(lab.dataset(config) / part.path).to_pylist()
    ]
    return sorted((row["user"], n) for row in parts for n in range(max(1, row["validation_end"]), len(row["item"])))


def repeated_targets(lab: Lab, config: Config) -> int:
    """Return the number of targets that their user has consumed before the held-out part."""
    parts = [
        row for part in lab.manifest(config).parts for row in pq.read_table(lab.dataset(config) / part.path).to_pylist()
    ]
    seen = {row["user"]: set(row["item"][: row["validation_end"]]) for row in parts}
    return sum(item in seen[row["user"]] for row in _users(lab, config) for item in row["targets"])


def list_lengths(lab: Lab, config: Config) -> list[int]:
    """Return how many items the best list of each user has."""
    return [sum(item > 0 for item in row["top_items"]) for row in _users(lab, config)]


def baselines(lab: Lab, config: Config) -> list[str]:
    """Return the names of the baselines in metrics.json."""
    values = json.loads((lab.see(evaluated, config) / "metrics.json").read_text(encoding="utf-8"))
    return list(values["baselines"])


def slices(lab: Lab, config: Config) -> list[str]:
    """Return the names of the slices in metrics.json, each once."""
    values = json.loads((lab.see(evaluated, config) / "metrics.json").read_text(encoding="utf-8"))
    return list(dict.fromkeys(entry["name"] for entry in values["slices"]))


def sliced_values(lab: Lab, config: Config) -> list[tuple[Any, ...]]:
    """Return user, place, and three features as ids of each scored impression; None for one without slices."""
    names = ("user", "place", "slice.impression.colour", "slice.user.shade", "slice.user.colour")
    return sorted(tuple(row.get(name) for name in names) for row in _users(lab, config))


def sliced_values_by_hand(lab: Lab, config: Config) -> list[tuple[Any, ...]]:
    """Return the same from the rows of the dataset, without slices by the colour of users."""
    parts = [
        row for part in lab.manifest(config).parts for row in pq.read_table(lab.dataset(config) / part.path).to_pylist()
    ]
    return sorted(
        (row["user"], place, colour, row["user.shade"], None)
        for row in parts
        for place, colour in enumerate(row["impression.colour"])
        if place >= row["validation_end"]
    )


def batches_scored(lab: Lab, config: Config) -> list[int]:
    """Return the largest number of rows in a batch of held-out histories."""
    model = model_of(lab, config)
    evaluator = model.built.task.evaluator("test", lab.world, model.built.dynamic)
    held: Any = evaluator
    return [batch.row_ids.size for batch in held.held_out.batches()]


def items_scored_at_a_time(lab: Lab, config: Config) -> int:
    """Return how many items at a time the evaluation scores."""
    asked: list[int] = []
    rank_items = trainer.evaluation.next_item.evaluate.rank_items

    def recording(*arguments: Any) -> Any:
        asked.append(arguments[4])
        return rank_items(*arguments)

    model = model_of(lab, config)
    with mock.patch.object(trainer.evaluation.next_item.evaluate, "rank_items", recording):
        model.built.task.evaluator("test", lab.world, model.built.dynamic).mean_metrics(model.built.model)
    return asked[0]
