"""Entries of [model.objective]: the loss by the plain formulas, with the numbers of the settings written out."""

from collections.abc import Iterator

from tests.settings.entry import Entry
from tests.settings.observations.models import loss
from tests.settings.observations.objectives import (
    bce_weights,
    estimated_gaps,
    full_softmax,
    gbce_weights,
    log_q,
    log_q_by_counts,
    negatives,
    negatives_are_targets,
    num_negatives,
    sampled,
    train_targets,
)

KIND, NEGATIVES = "model.objective.kind", "model.objective.negatives"

FULL = (
    Entry(KIND, "full_softmax", loss, formula=full_softmax(), base={KIND: "bce"}),
    Entry("model.objective.label_smoothing", 0.3, loss, formula=full_softmax(smoothing=0.3)),
    Entry("model.objective.temperature", 0.5, loss, formula=full_softmax(temperature=0.5)),
    Entry("model.objective.normalize", True, loss, formula=full_softmax(normalize=True)),
)


def sampled_entries(kind: str) -> Iterator[Entry]:
    """Yield the settings that all sampled objectives have."""
    base = {KIND: kind, "model.objective.num_negatives": 7}
    yield Entry(KIND, kind, loss, formula=sampled(kind))
    yield Entry("model.objective.num_negatives", 11, num_negatives, 11, base=base)
    yield Entry("model.objective.num_negatives", 11, loss, formula=sampled(kind), base=base)
    yield Entry("model.objective.temperature", 0.5, loss, formula=sampled(kind, temperature=0.5), base=base)
    yield Entry("model.objective.normalize", True, loss, formula=sampled(kind, normalize=True), base=base)
    by_popularity = {**base, f"{NEGATIVES}.kind": "popularity"}
    yield Entry("model.objective.logq", "counts", loss, formula=sampled(kind, power=0.75), base=by_popularity)
    streaming = {**base, f"{NEGATIVES}.kind": "cross_rank", "model.objective.logq": "streaming"}
    yield Entry("model.objective.logq_rate", 1.0, estimated_gaps, base=streaming)


def negatives_entries() -> Iterator[Entry]:
    """Yield where negatives come from."""
    base = {KIND: "sampled_softmax", "model.objective.num_negatives": 40}
    for kind in ("popularity", "in_batch", "cross_rank", "mixed"):
        yield Entry(f"{NEGATIVES}.kind", kind, negatives, base=base)
    for kind in ("in_batch", "cross_rank"):
        yield Entry(f"{NEGATIVES}.kind", kind, negatives_are_targets, True, base=base)
    drawn = {**base, f"{NEGATIVES}.kind": "popularity"}
    yield Entry(f"{NEGATIVES}.kind", "uniform", negatives, base=drawn)
    yield Entry(f"{NEGATIVES}.power", 2.0, negatives, base=drawn)
    counted = {"model.objective.logq": "counts"}
    by_power = log_q_by_counts(lambda counts: counts**2 / (counts**2).sum())
    yield Entry(f"{NEGATIVES}.power", 2.0, log_q, formula=by_power, base={**drawn, **counted})
    mixed = {**base, **counted, f"{NEGATIVES}.kind": "mixed"}
    by_share = log_q_by_counts(lambda counts: 0.9 / counts.size + 0.1 * counts / counts.sum(), train_targets)
    yield Entry(f"{NEGATIVES}.uniform_share", 0.9, log_q, formula=by_share, base=mixed)
    yield Entry(f"{NEGATIVES}.uniform_share", 0.9, negatives, base=mixed)


BCE = {KIND: "bce", "model.objective.num_negatives": 7}
GBCE = {KIND: "gbce", "model.objective.num_negatives": 7}

ENTRIES = (
    *FULL,
    *sampled_entries("sampled_softmax"),
    *sampled_entries("bce"),
    *sampled_entries("gbce"),
    *negatives_entries(),
    Entry(
        "model.objective.negatives_per_target", 3.0, loss, formula=sampled("bce", weights=bce_weights(3.0)), base=BCE
    ),
    Entry(
        "model.objective.balanced",
        False,
        loss,
        formula=sampled("bce", weights=bce_weights(3.0), balanced=False),
        base={**BCE, "model.objective.negatives_per_target": 3.0},
    ),
    Entry("model.objective.calibration", 0.2, loss, formula=sampled("gbce", weights=gbce_weights(0.2)), base=GBCE),
    Entry("model.objective.balanced", False, loss, formula=sampled("gbce", balanced=False), base=GBCE),
)
