"""Models of every kind with random weights that matter, as methods of explanation see them, and questions about their histories."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from models.config import NextItemConfig
from models.ranking.config import RankingConfig
from tests.contracts.test_score_invariance import ENCODERS, NARROW, RANKERS, TABLES, Ranker, Recommender
from tests.support.shared_runs import shared
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.columns import take_all
from trainer.data.stream.packed import PackedHistories, joined
from trainer.explanation.explained import Explained, explained_model
from trainer.explanation.questions import Questions, ask
from trainer.global_batch.dynamic_ids import DynamicTables
from trainer.inference.trained_model import TrainedModel

FORMS: Mapping[str, dict[str, Any]] = {
    **{f"encoder: {name}": given for name, given in ENCODERS.items()},
    **{f"ranker: {name}": given for name, given in RANKERS.items()},
}
NUM_QUESTIONS = 25


@dataclass(frozen=True)
class Case:
    """A model, questions about histories of very different lengths, some of them empty, and the packed rows behind them."""

    model: Explained
    asked: Questions
    packed: PackedHistories
    rows: np.ndarray
    low: np.ndarray


@shared
def case_of(form: str, events: tuple[Path, Manifest], impressions: tuple[Path, Manifest], max_history: int) -> Case:
    """Return a case by its name in FORMS."""
    given = {"max_history": max_history, "inputs": {}, **FORMS[form]}
    given["inputs"] = {"time_unit": "seconds", **given["inputs"]}
    if form.startswith("encoder"):
        return _of_recommender(Recommender(*events, NextItemConfig.model_validate(given)))
    return _of_ranker(Ranker(*impressions, RankingConfig.model_validate({**given, **NARROW})))


def _of_recommender(made: Recommender) -> Case:
    model = _trained(made, made.model.float())
    reader = made.reader
    packed = joined([reader.read([group])[group] for group in range(len(reader.group_rows))])
    random = np.random.default_rng(3)
    lengths = packed.ends - packed.starts
    rows = np.argsort(-lengths)[:: max(1, lengths.size // NUM_QUESTIONS)]
    low = np.maximum(0, lengths[rows] - random.integers(1, 3, rows.size))
    low[-1] = 0
    targets = random.integers(1, made.catalogue.num_known, rows.size)
    at = None if packed.times is None else packed.times[packed.starts[rows] + low]
    return Case(model, ask(packed, rows, low, targets, at, model.max_events), packed, rows, low)


def _of_ranker(made: Ranker) -> Case:
    model = _trained(made, made.model.float())
    reader = made.reader
    packed = joined([reader.read([group])[group] for group in range(len(reader.group_rows))])
    shown = packed.impressions
    assert shown is not None
    owner = np.repeat(np.arange(packed.starts.size), shown.ends - shown.starts)
    chosen = np.argsort(-shown.history_end, kind="stable")
    chosen = np.append(chosen[:: max(1, owner.size // NUM_QUESTIONS)], chosen[-1])
    rows, low = owner[chosen], shown.history_end[chosen]
    features = take_all(shown.features, chosen)
    asked = ask(packed, rows, low, shown.items[chosen], shown.times[chosen], model.max_events, features, keys=chosen)
    return Case(model, asked, packed, rows, low)


def _trained(made: Recommender | Ranker, network: Any) -> Explained:
    catalogue = made.catalogue
    dynamic = DynamicTables(TABLES, catalogue.features, 1, catalogue.inputs)
    trained = TrainedModel(cast(Any, None), made.manifest, cast(Any, None), network.eval(), catalogue, dynamic)
    label = network.labels[0] if isinstance(made, Ranker) else None
    return explained_model(trained, label=label)
