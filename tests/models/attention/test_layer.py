"""The attention sub-layer around `attend`: what a learned temperature, two maps and dropout do to a history."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.attention.blocks import AttentionContext
from models.attention.config import AttentionConfig
from models.attention.layer import Attention
from models.batches.jagged import layout_of

WIDTH, LENGTH = 8, 5


def layer_of(**settings: object) -> Attention:
    config = AttentionConfig.model_validate({"num_heads": 2, "dropout": 0.0, **settings})
    layer = Attention(WIDTH, LENGTH, config, rotary=False, depth=2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.double().eval()


def context() -> AttentionContext:
    return AttentionContext(layout_of(np.asarray([0, LENGTH])))


def events() -> Tensor:
    return torch.randn((LENGTH, WIDTH), generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def test_a_learned_temperature_divides_scores() -> None:
    learned, fixed = layer_of(temperature="learned"), layer_of()
    assert learned.log_temperature is not None
    with torch.no_grad():
        fixed.load_state_dict({k: v for k, v in learned.state_dict().items() if k != "log_temperature"})
        learned.log_temperature.copy_(torch.tensor([math.log(2.0), math.log(0.5)]))
        for head, factor in enumerate((0.5, 2.0)):
            fixed.query_key_value.weight[4 * head : 4 * head + 4] *= factor
    torch.testing.assert_close(learned(events(), context())[0], fixed(events(), context())[0])


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"window": 2},
        {"window": 2, "num_global": 1},
        {"mask": "bidirectional"},
        {"bias": "both", "normalisation": "silu", "output_norm": "layer_norm"},
        {"normalisation": "entmax15", "bias": "position", "temperature": "learned"},
        {"differential": True},
        {"num_key_value_heads": 1, "dropout": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("only_last", [False, True])
def test_a_factor_of_the_temperature_divides_scores(form: dict[str, object], only_last: bool) -> None:
    """On every path, the scores of twice the temperature are those of half the queries."""
    flat, plain = layer_of(temperature_factor=2.0, **form), layer_of(**form)
    times = torch.arange(LENGTH) * 3000
    shared = AttentionContext(layout_of(np.asarray([0, LENGTH])), times, times)
    if only_last:
        shared = shared.narrowed_to_last()
    before = plain(events(), shared)[0]
    with torch.no_grad():
        plain.query_key_value.weight[:WIDTH] *= 0.5
    got = flat(events(), shared)[0]
    torch.testing.assert_close(got, plain(events(), shared)[0])
    assert not torch.allclose(got, before, atol=1e-3)


def test_the_second_map_is_taken_from_the_first() -> None:
    """Differential attention as in Ye et al. 2024, equations 1 to 3, head by head."""
    layer, x = layer_of(differential=True), events()
    query, key, value = (x @ layer.query_key_value.weight.T).split(WIDTH, dim=1)
    initial = 0.8 - 0.6 * math.exp(-0.3)
    query_1, key_1, query_2, key_2 = layer.difference
    share = (query_1 @ key_1).exp() - (query_2 @ key_2).exp() + initial
    past = torch.ones((LENGTH, LENGTH), dtype=torch.bool).tril()
    seen = []
    for head in range(2):
        columns = slice(4 * head, 4 * head + 4)
        maps = []
        for q, k in zip(query[:, columns].split(2, dim=1), key[:, columns].split(2, dim=1), strict=True):
            maps.append((q @ k.T / math.sqrt(2)).masked_fill(~past, -math.inf).softmax(dim=1))
        attended = (maps[0] - share * maps[1]) @ value[:, columns]
        seen.append(layer.head_norm(attended) * (1.0 - initial))
    expected = layer.attention_output(torch.cat(seen, dim=1))
    torch.testing.assert_close(layer(x, context())[0], expected)


@pytest.mark.parametrize("training", [True, False])
def test_weights_are_dropped_in_training_alone(training: bool) -> None:
    dropping, whole = layer_of(dropout=0.5), layer_of()
    dropping.train(training)
    torch.manual_seed(1)
    same = torch.allclose(dropping(events(), context())[0], whole(events(), context())[0])
    assert same == (not training)
