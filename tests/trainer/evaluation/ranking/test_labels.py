"""On the host labels mean what they mean in the model, whatever they are defined by."""

import numpy as np
import pytest
import torch

from models.ranking.config import LabelConfig
from models.ranking.labels import Labels
from trainer.evaluation.ranking.labels import LabelRules

CHAINS = {
    "alone": {"click": LabelConfig(), "buy": LabelConfig()},
    "after": {"click": LabelConfig(), "buy": LabelConfig(defined_when="click")},
    "after one that is not learned": {"buy": LabelConfig(defined_when="click")},
    "entire": {"buy": LabelConfig(defined_when="click", entire_space=True), "click": LabelConfig()},
    "chain": {
        "return": LabelConfig(defined_when="buy"),
        "click": LabelConfig(),
        "buy": LabelConfig(defined_when="click", entire_space=True),
    },
    "chain of conditions": {"return": LabelConfig(defined_when="buy"), "buy": LabelConfig(defined_when="click")},
}


@pytest.mark.parametrize("configs", CHAINS.values(), ids=CHAINS)
def test_positive_and_defined_as_in_the_model(configs):
    random = np.random.default_rng(1)
    columns = {name: (random.random(200) < 0.5).astype(np.float32) * 3 for name in ("click", "buy", "return")}
    positive, defined = Labels(configs).targets({name: torch.from_numpy(c) for name, c in columns.items()})
    rules = LabelRules(configs)
    assert rules.labels == tuple(configs)
    for place, label in enumerate(configs):
        assert rules.positive(label, columns).tolist() == positive[:, place].tolist()
        assert rules.defined(label, columns).tolist() == defined[:, place].tolist()


def test_impressions_without_any_label_stand_for_those_that_were_left_out():
    columns = {"click": np.asarray([0.0, 1.0, 0.0]), "like": np.asarray([0.0, 0.0, 2.0])}
    assert LabelRules({"click": LabelConfig()}, 10.0).weights(columns).tolist() == [10.0, 1.0, 1.0]
