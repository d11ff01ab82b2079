"""Rotary positions: the score of a pair is a function of the distance of its places, in every precision."""

import pytest
import torch
from torch import Tensor

from models.attention import blocks
from models.attention.rotary import BASE, rotate, turns_of
from tests.models.encoders.test_encoder import LENGTHS, context_of, events, make_encoder

PLACES = torch.tensor([0, 1, 7, 63, 150, 199, 200, 511, 1000, 2047, 4000])
FAR_PLACES = torch.tensor([65_536, 1_000_000, 10**9])
DISTANCE, WIDTH = 3, 32


def pair(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a query and a key (1, 1, WIDTH) with a large score."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, 1, WIDTH, generator=generator)
    return query.to(dtype), (query + 0.1 * torch.randn(1, 1, WIDTH, generator=generator)).to(dtype)


def turned(x_NHK: Tensor, places: Tensor) -> Tensor:
    """Return vectors rotated by their places."""
    return rotate(x_NHK, turns_of(places, x_NHK.shape[-1], x_NHK.dtype))


def scores(dtype: torch.dtype, places: Tensor = PLACES, autocast: bool = False) -> Tensor:
    """Return (n,) float64: the scores of one pair at DISTANCE, with the key at each of the places; products are summed exactly."""
    query, key = pair(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        turned_query = turned(query.expand(places.numel(), -1, -1), places + DISTANCE)
        turned_key = turned(key.expand(places.numel(), -1, -1), places)
    assert turned_query.dtype == turned_key.dtype == dtype
    return (turned_query.double() * turned_key.double()).sum(dim=(1, 2))


def exact_score(dtype: torch.dtype) -> Tensor:
    """Return the same at place 0, from angles and turns in float64."""
    query, key = (x.double().flatten() for x in pair(dtype))
    angle = DISTANCE * BASE ** (-torch.arange(0, WIDTH, 2, dtype=torch.float64) / WIDTH)
    first, second = query.chunk(2)
    turned = torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()))
    return (turned * key).sum()


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_score_of_a_pair_is_the_same_at_all_places(dtype, autocast):
    """Rotated numbers are rounded once: a score of 32 products is off by less than one unit in the last place of its dtype."""
    tolerance = torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-5
    actual, expected = scores(dtype, autocast=autocast), exact_score(dtype)
    assert expected > 10.0
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_score_of_a_pair_is_the_same_at_places_beyond_any_history(dtype):
    """An angle of thousands of turns leaves float32 few digits for the fraction of a turn, which is all that matters."""
    tolerance = torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-5
    actual, expected = scores(dtype, FAR_PLACES), exact_score(dtype)
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=tolerance, atol=0.0)


def test_gradients_pass_back_through_the_turn():
    x = torch.randn(5, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: turned(t, torch.arange(5)), (x,))
    low = x.detach().bfloat16().requires_grad_()
    turned(low, torch.arange(5)).sum().backward()
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("only_last", [False, True])
def test_turns_are_computed_once_for_all_layers_of_a_batch(monkeypatch, only_last):
    calls = []

    def counted(*given) -> tuple[Tensor, Tensor]:
        calls.append(given)
        return turns_of(*given)

    monkeypatch.setattr(blocks, "turns_of", counted)
    encoder = make_encoder({"positions": "rotary", "num_blocks": 3})
    encoder(events(sum(LENGTHS)), context_of(LENGTHS), only_last)
    assert len(calls) == 1
