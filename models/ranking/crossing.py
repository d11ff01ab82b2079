"""Crosses of fields: products that a network of sums and activations learns slowly.

    DCN-v2  x_(l+1) = x_0 * (U_l V_l^T x_l + b_l) + x_l         (Wang et al. 2021, arXiv:2008.13535, equations 1 and 2)
    FM      [x_0, 1/2 ((sum_f v_f)^2 - sum_f v_f^2)],  v_f = P_f x_f

x_0 is the concatenation of all fields, * the elementwise product. FM is the factorisation machine of Rendle (2010,
doi:10.1109/ICDM.2010.127) in the form of He & Chua (2017, arXiv:1708.05027, equation 4): it keeps the vector of sums of
products, which later layers add up, instead of their sum. Each field has a projection to the common width.

Shapes: M impressions, F width of all fields together, K rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.ranking.config import CrossingConfig


class Concatenated(nn.Module):
    """The concatenated fields, (M, F), without crosses."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.width = sum(widths)

    def forward(self, fields: list[Tensor]) -> Tensor:
        return torch.cat(fields, dim=1)


class LowRankCross(nn.Module):
    """DCN-v2, stacked before the next layers: (M, F). A rank beyond F / 2 costs more than full maps."""

    def __init__(self, widths: Sequence[int], num_layers: int, rank: int) -> None:
        super().__init__()
        self.width = sum(widths)
        self.down = nn.ModuleList(nn.Linear(self.width, rank, bias=False) for _ in range(num_layers))
        self.up = nn.ModuleList(nn.Linear(rank, self.width) for _ in range(num_layers))

    def forward(self, fields: list[Tensor]) -> Tensor:
        first_MF = torch.cat(fields, dim=1)
        x_MF = first_MF
        for down, up in zip(self.down, self.up, strict=True):
            x_MF = torch.addcmul(x_MF, first_MF, up(down(x_MF)).to(x_MF.dtype))
        return x_MF


class FactorisationMachine(nn.Module):
    """The fields, and the sum of products of all pairs of them: (M, F + K)."""

    def __init__(self, widths: Sequence[int], rank: int) -> None:
        super().__init__()
        self.width = sum(widths) + rank
        self.projections = nn.ModuleList(nn.Linear(width, rank, bias=False) for width in widths)

    def forward(self, fields: list[Tensor]) -> Tensor:
        vectors = [projection(field) for projection, field in zip(self.projections, fields, strict=True)]
        total_MK = vectors[0]
        squares_MK = vectors[0].square()
        for vector_MK in vectors[1:]:
            total_MK = total_MK + vector_MK
            squares_MK = squares_MK + vector_MK.square()
        return torch.cat([*fields, (0.5 * (total_MK.square() - squares_MK)).to(fields[0].dtype)], dim=1)


def crossing_of(config: CrossingConfig, widths: Sequence[int]) -> Concatenated | LowRankCross | FactorisationMachine:
    """Build the crossing of the settings for fields of these widths."""
    match config.kind:
        case "none":
            return Concatenated(widths)
        case "dcn_v2":
            return LowRankCross(widths, config.num_layers, min(config.rank, sum(widths)))
        case "fm":
            return FactorisationMachine(widths, config.rank)


@torch.no_grad()
def draw_crossing(crossing: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights from `generator` (CPU), in a fixed order: Glorot & Bengio 2010, normal; biases are 0."""
    for parameter in crossing.parameters():
        if parameter.dim() == 1:
            parameter.zero_()
        else:
            std = (2.0 / sum(parameter.shape)) ** 0.5
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
