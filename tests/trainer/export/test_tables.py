"""Tables of an export in rows of 8-bit integers."""

import torch

from trainer.export.tables import FloatTable, Int8Table


def test_eight_bit_rows_are_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    weight[3] = 0.7  # a row without a range
    table, whole = Int8Table(weight), FloatTable(weight)
    rows = torch.tensor([[0, 3], [7, 49]])
    assert torch.equal(whole(rows), weight[rows])
    step = (weight.amax(dim=1) - weight.amin(dim=1)) / 255.0
    assert ((table(rows) - weight[rows]).abs() <= 0.5001 * step[rows][..., None] + 1e-6).all()
    assert torch.equal(table(torch.tensor([3])), weight[3:4])
    assert Int8Table(torch.zeros(0, 4))(torch.zeros(0, dtype=torch.int64)).shape == (0, 4)
