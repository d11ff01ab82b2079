"""Best possible metrics on a synthetic log of impressions: those of the probabilities from which it was drawn.

    python -m benchmarks.oracle LOGS EVALUATION        # such as runs/NAME/evaluation/test

prints an evaluation's metrics and those of the known probabilities on the same impressions, as JSON. Nothing beats the
latter but by chance, which both share, since they are judged by the same clicks.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.errors import UserError
from trainer.evaluation.ranking.judged import Judged, areas_of, count_scores, sums_of
from trainer.evaluation.ranking.metrics import metrics_of
from trainer.evaluation.ranking.names import name_of

LABELS = ("click", "conversion")
_KEYS = ["user", "item", "time"]
_COLUMNS = {"user_id": "user", "item_id": "item", "time": "time"}


def best_metrics(logs: Path, judged: pa.Table, labels: tuple[str, ...] = LABELS) -> dict[str, float]:
    """Return the metrics of the known probabilities on the impressions of a per_impression.parquet, named as in an evaluation.

    A conversion is judged as the evaluation judged it: after clicks only where its label is null elsewhere, else by the chance that
    there is a click and then a conversion. Raises UserError if some impression is not in the logs.
    """
    known = _known(logs)
    of_label = {name_of("label", label, labels): label for label in labels}
    joined = judged.select([*_KEYS, *of_label]).join(known, keys=_KEYS, join_type="inner").sort_by("user")
    if joined.num_rows != judged.num_rows:
        raise UserError(
            f"optimum: {judged.num_rows - joined.num_rows:,} of {judged.num_rows:,} evaluated impressions are not in {logs}; "
            "name the folder of the logs that were evaluated"
        )
    metrics: dict[str, float] = {}
    for column, label in of_label.items():
        given = _judged(joined, column, label)
        values = metrics_of(sums_of(given), areas_of(count_scores(given)))
        metrics |= {name_of(metric, label, labels): value for metric, value in values.items()}
    return metrics


def _known(logs: Path) -> pa.Table:
    paths = sorted(logs.glob("impressions-*.parquet"))
    if not paths:
        raise UserError(
            f"optimum {logs}: there are no impressions-*.parquet; `shoal synth FOLDER --impressions` makes them"
        )
    names = [*_COLUMNS, "click_probability", "conversion_probability"]
    return pa.concat_tables([pq.read_table(path, columns=names) for path in paths]).rename_columns(
        [_COLUMNS.get(name, name) for name in names]
    )


def _judged(joined: pa.Table, column: str, label: str) -> Judged:
    after_click = label == "click" or joined.column(column).null_count > 0
    defined = joined.filter(pc.is_valid(joined.column(column)))
    chance = defined.column(f"{label}_probability").to_numpy()
    if not after_click:
        chance = chance * defined.column("click_probability").to_numpy()
    positive = defined.column(column).to_numpy() > 0
    # In float32, as a model's are: sums that should be equal, but for their last bits, are ties.
    logits = (np.log(chance) - np.log1p(-chance)).astype(np.float32).astype(np.float64)
    return Judged(defined.column("user").to_numpy(), logits, positive, np.ones(chance.size))


def compare(logs: Path, evaluation: Path) -> dict[str, dict[str, float | None]]:
    """Return, per metric, the value of the evaluated model, the best possible one, and the difference."""
    found = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    labels = tuple(found["labels"])
    best = best_metrics(logs, pq.read_table(evaluation / "per_impression.parquet"), labels)
    compared: dict[str, dict[str, float | None]] = {}
    for name, value in best.items():
        model = found["metrics"][name]
        compared[name] = {"model": model, "best": value, "difference": None if model is None else model - value}
    return compared


def _main() -> None:
    parser = argparse.ArgumentParser(description="an evaluation compared with what is possible on a synthetic log")
    parser.add_argument("logs", type=Path, help="folder that `shoal synth --impressions` wrote")
    parser.add_argument("evaluation", type=Path, help="folder with metrics.json and per_impression.parquet")
    given = parser.parse_args()
    print(json.dumps(compare(given.logs, given.evaluation), indent=2))


if __name__ == "__main__":
    _main()
