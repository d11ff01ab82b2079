"""Entries of [model] for ranking: interest, crosses, experts and labels."""

from collections.abc import Iterator

from tests.settings.entries.model import attention
from tests.settings.entry import Entry, Settings
from tests.settings.observations.models import dense_shapes, loss, training_loss
from tests.settings.observations.ranking import (
    by_logits,
    focal,
    of_clicked_conversions,
    plain,
    ranked,
    reweighed,
)

WORLD = "impressions"
INTEREST = "model.interest.attention"
# Projected, and scored by a dot product: what most parts of attention are of.
PROJECTED: Settings = {
    f"{INTEREST}.score": "dot_product",
    f"{INTEREST}.projection": True,
    f"{INTEREST}.normalisation": "softmax",
}
ITEMS: Settings = {
    "logs.items": {
        "path": "LOGS/items.parquet",
        "features": {"colour": {"kind": "categorical"}, "shade": {"kind": "categorical"}},
    }
}
CATEGORY: Settings = {**ITEMS, "model.interest.search": {"kind": "category", "feature": "colour", "num_found": 2}}
CLICK: Settings = {"model.labels": {"click": {}}}
TWO: Settings = {
    "logs.labels": ["click", "conversion"],
    "logs.outcomes": ["like"],
    "model.labels": {"click": {}, "conversion": {}},
}
PLE: Settings = {**TWO, "model.experts.kind": "ple"}
SAMPLED: Settings = {"logs.negative_sampling_rate": 0.25}


def entries(names: dict[str, object], base: Settings) -> Iterator[Entry]:
    """Yield entries of settings that change the loss."""
    for key, value in names.items():
        yield Entry(key, value, loss, base=base, world=WORLD)


def of_label(name: str, value: object, kind: str, formula: object, **beside: object) -> Entry:
    """Return an entry of a setting of the label click with a loss of a kind."""
    base = {"model.labels": {"click": {"loss": kind, **beside}}}
    return Entry(f"model.labels.click.{name}", value, loss, formula=by_logits(formula), base=base, world=WORLD)  # type: ignore[arg-type]


TASK = (
    Entry("model.task", "ranking", refused='model.task = "ranking", and the logs are for "next_item"'),
    Entry("model.task", "next_item", refused='model.task = "next_item", and the logs are for "ranking"', world=WORLD),
)

HOW_IT_MEETS = (
    *entries({"model.kind": "pooled", "model.interest.kind": "mean", f"{INTEREST}.unit_hidden": [5]}, {}),
    *entries({f"{INTEREST}.unit_activation": "relu", f"{INTEREST}.score": "dot_product"}, {}),
    Entry(f"{INTEREST}.projection", False, loss, base=PROJECTED, world=WORLD),
    *attention(INTEREST, WORLD, PROJECTED),
    Entry(
        f"{INTEREST}.mask", "bidirectional", refused="a candidate sees earlier events only", base=PROJECTED, world=WORLD
    ),
    Entry(f"{INTEREST}.differential", True, refused="is not offered for candidates", base=PROJECTED, world=WORLD),
    Entry("model.interest.search.kind", "similarity", loss, base={"model.interest.search.num_found": 1}, world=WORLD),
    Entry("model.interest.search.feature", "shade", loss, base=CATEGORY, world=WORLD),
    Entry("model.interest.search.num_found", 1, loss, base=CATEGORY, world=WORLD),
)

LAYERS = (
    *entries({"model.crossing.kind": "dcn_v2"}, {}),
    *entries({"model.crossing.num_layers": 1, "model.crossing.rank": 4}, {"model.crossing.kind": "dcn_v2"}),
    *entries({"model.experts.hidden": [16], "model.experts.tower": [4], "model.experts.activation": "prelu"}, {}),
    Entry("model.experts.dropout", 0.5, training_loss, world=WORLD),
    *entries({"model.experts.kind": "mmoe"}, TWO),
    *entries(
        {"model.experts.num_experts": 2, "model.experts.num_label_experts": 2, "model.experts.num_levels": 2}, PLE
    ),
    Entry("model.experts.num_levels", 2, dense_shapes, base=PLE, world=WORLD),
)

LABELS = (
    Entry("model.labels.click.weight", 3.0, loss, lambda before: 3.0 * before, base=CLICK, world=WORLD),
    of_label("loss", "focal", "bce", focal(2.0)),
    of_label("loss", "pairwise", "bce", ranked("pairwise", 0.5)),
    of_label("loss", "listwise", "bce", ranked("listwise", 0.5)),
    of_label("focusing", 0.5, "focal", focal(0.5)),
    of_label("bce_share", 0.2, "listwise", ranked("listwise", 0.2)),
    Entry("model.labels.conversion.defined_when", "click", loss, formula=of_clicked_conversions, base=TWO, world=WORLD),
    Entry(
        "model.labels.conversion.entire_space",
        True,
        loss,
        base={**TWO, "model.labels.conversion.defined_when": "click"},
        world=WORLD,
    ),
    Entry("model.negative_sampling", "none", loss, formula=by_logits(plain), base=SAMPLED, world=WORLD),
    Entry("model.negative_sampling", "weight", loss, formula=by_logits(reweighed(0.25)), base=SAMPLED, world=WORLD),
)

ENTRIES = (*TASK, *HOW_IT_MEETS, *LAYERS, *LABELS)
