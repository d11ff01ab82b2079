"""Crosses of fields against their formulas, pair by pair."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from models.ranking.config import CrossingConfig
from models.ranking.crossing import FactorisationMachine, LowRankCross, crossing_of, draw_crossing

WIDTHS, ROWS = [3, 1, 4], 5


def fields(rows: int = ROWS) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(rows, width, dtype=torch.float64, generator=random) for width in WIDTHS]


def crossing(kind: str, **more):
    module = crossing_of(CrossingConfig(kind=kind, **more), WIDTHS).double()
    draw_crossing(module, torch.Generator().manual_seed(2))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    return module


def test_dcn_v2_is_its_formula():
    module, first = crossing("dcn_v2", num_layers=3, rank=2), torch.cat(fields(), dim=1)
    assert isinstance(module, LowRankCross)
    x = first
    for down, up in zip(module.down, module.up, strict=True):
        low_rank = up.weight @ down.weight
        assert torch.linalg.matrix_rank(low_rank) == 2
        x = first * (x @ low_rank.T + up.bias) + x
    torch.testing.assert_close(module(fields()), x)


def test_dcn_v2_of_l_layers_has_products_of_l_plus_one_numbers():
    module = crossing("dcn_v2", num_layers=2, rank=2)
    with torch.no_grad():
        for up in module.up:
            up.bias.zero_()
    scales = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    values = torch.stack([module([scale * field for field in fields(1)])[0] for scale in scales])
    differences = values
    for _ in range(4):  # a polynomial of degree 3 has no fourth difference, and a third one
        third, differences = differences, differences[1:] - differences[:-1]
    torch.testing.assert_close(differences, torch.zeros_like(differences), atol=1e-9, rtol=0.0)
    assert (third.abs() > 1e-6).any()


def test_fm_is_the_sum_over_all_pairs_of_fields():
    module = crossing("fm", rank=4)
    assert isinstance(module, FactorisationMachine)
    vectors = [projection(field) for projection, field in zip(module.projections, fields(), strict=True)]
    pairs = sum(a * b for a, b in combinations(vectors, 2))
    torch.testing.assert_close(module(fields()), torch.cat([*fields(), pairs], dim=1))


@pytest.mark.parametrize("kind", ["none", "dcn_v2", "fm"])
def test_gradients_shapes_and_order(kind):
    module = crossing(kind, rank=2)
    assert torch.autograd.gradcheck(lambda *given: module(list(given)), tuple(f.requires_grad_() for f in fields(2)))
    crossed = module(fields())
    assert crossed.shape == (ROWS, module.width)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(module([field[order] for field in fields()]), crossed[order])
    assert module([field[:0] for field in fields()]).shape == (0, module.width)
