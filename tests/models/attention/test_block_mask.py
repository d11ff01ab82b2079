"""Blocks that FlexAttention visits: those of torch's create_block_mask, without a number for each pair of events."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from models.attention.block_mask import BLOCK, Sight, block_mask
from tests.models.attention.forms import layout_from
from tests.models.objectives.largest_tensor import largest_tensor

SIGHTS = [
    Sight(causal=True),
    Sight(causal=False),
    Sight(causal=True, window=5),
    Sight(causal=True, window=300),
    Sight(causal=False, window=1),
    Sight(causal=False, window=200),
    Sight(causal=True, window=4, num_global=3),
    Sight(causal=True, window=150, num_global=140),
    Sight(causal=False, window=3, num_global=200),
    Sight(causal=False, window=300, num_global=1),
]
LENGTHS = {
    "one long": [5 * BLOCK],
    "one that ends within a block": [5 * BLOCK + 1],
    "long between short": [3, 0, 700, 1, 1, 60],
    "two at the edge of a block": [BLOCK, 0, 2 * BLOCK, 2],
    "short": [7] * 40,
    "less than a block": [4, 9],
    "any": [200, 13, 0, 380, 129, 5, 127, 1],
}


def blocks(counts: torch.Tensor, indices: torch.Tensor) -> list[list[int]]:
    return [sorted(row[:count].tolist()) for count, row in zip(counts[0, 0].tolist(), indices[0, 0], strict=True)]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("sight", SIGHTS, ids=str)
def test_the_blocks_are_those_that_torch_finds_by_looking_at_all_pairs(sight, lengths):
    layout = layout_from(LENGTHS[lengths])
    left = block_mask(layout, sight)
    right = create_block_mask(left.mask_mod, None, None, layout.num_events, layout.num_events, "cpu")
    assert left.seq_lengths == right.seq_lengths
    assert left.BLOCK_SIZE == right.BLOCK_SIZE == (BLOCK, BLOCK)
    for kind in ("kv", "full_kv", "q", "full_q"):
        actual, expected = (
            blocks(getattr(mask, f"{kind}_num_blocks"), getattr(mask, f"{kind}_indices")) for mask in (left, right)
        )
        assert actual == expected, kind


@pytest.mark.parametrize("sight", [SIGHTS[0], SIGHTS[7], SIGHTS[8]], ids=str)
def test_no_tensor_has_a_number_for_each_pair_of_events(sight):
    layout = layout_from([1000, 3, 20_000, 1, 11_764])
    num_blocks = layout.num_events // BLOCK
    assert layout.num_events == 32_768
    assert largest_tensor(lambda: block_mask(layout, sight)) <= max(layout.num_events, (num_blocks + 1) ** 2)
