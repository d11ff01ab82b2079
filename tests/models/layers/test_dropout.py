"""Dropout by eight decisions a draw: the right rate, an unbiased scale, nothing in eval, one result per seed."""

import pytest
import torch

from models.encoders.config import EncoderConfig
from models.layers.dropout import Dropout


@pytest.mark.parametrize("probability", [0.1, 0.2, 0.5, 0.9])
def test_the_rate_and_the_scale_are_those_of_the_nearest_256th(probability):
    torch.manual_seed(1)
    applied = round(probability * 256) / 256
    x = torch.full((1000, 200), 3.0)
    y = Dropout(probability)(x)
    dropped = y == 0
    spread = 5 * (applied * (1 - applied) / x.numel()) ** 0.5
    assert abs(dropped.float().mean().item() - applied) < spread
    torch.testing.assert_close(y[~dropped], torch.full_like(y[~dropped], 3.0 / (1 - applied)))
    assert abs(y.mean().item() - 3.0) < 3.0 * spread / (1 - applied)


def test_elements_are_dropped_independently_of_their_neighbours():
    torch.manual_seed(2)
    dropped = (Dropout(0.5)(torch.ones(8, 50_000)) == 0).float()
    correlation = torch.corrcoef(dropped.T.reshape(-1, 8).T)
    assert (correlation - torch.eye(8)).abs().max() < 0.03


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1001])
def test_any_number_of_elements(size):
    torch.manual_seed(3)
    y = Dropout(0.5)(torch.ones(size))
    assert y.shape == (size,)
    assert set(y.tolist()) <= {0.0, 2.0}


def test_eval_is_the_identity():
    x = torch.randn(50, 8)
    assert torch.equal(Dropout(0.7).eval()(x), x)


def test_probability_zero_is_the_identity_and_draws_nothing():
    torch.manual_seed(4)
    x, state = torch.randn(50, 8), torch.get_rng_state()
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_decides_which_elements_go():
    x, dropout = torch.randn(64, 16), Dropout(0.3)
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(dropout(x))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not torch.equal(results[2], dropout(x))  # the next draw is another one


def test_the_gradient_passes_where_the_value_did():
    torch.manual_seed(7)
    x = torch.ones(40, 8, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_stays(dtype):
    assert Dropout(0.5)(torch.ones(9, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("probability", [0.001, 0.997, 0.999])
def test_every_probability_that_the_config_admits_can_be_applied(probability):
    torch.manual_seed(8)
    y = Dropout(EncoderConfig(dropout=probability).dropout)(torch.ones(10_000))
    assert y.isfinite().all()
    assert (y > 0).any()
