"""Tensors as ranks hold them, put together again and compared."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor


@dataclass(frozen=True)
class Pieces:
    """A tensor's size, and copies of the parts that one rank holds with their offsets."""

    size: torch.Size
    parts: list[tuple[list[int], Tensor]]


def pieces_of(value: Any) -> Pieces:
    if isinstance(value, ShardedTensor):
        parts = [(list(shard.metadata.shard_offsets), shard.tensor.detach().clone()) for shard in value.local_shards()]
        return Pieces(value.size(), parts)
    tensor = torch.as_tensor(value).detach().clone()
    return Pieces(tensor.size(), [([0] * tensor.dim(), tensor)])


def assembled(states: list[dict[str, Pieces]]) -> dict[str, Tensor]:
    """Return the whole tensors from all ranks' states. Ranks that hold the same part must agree on it."""
    whole: dict[str, Tensor] = {}
    for name, first in {name: pieces for state in states for name, pieces in state.items()}.items():
        tensor = torch.full(first.size, float("nan"))
        for pieces in (state[name] for state in states if name in state):
            for offsets, part in pieces.parts:
                place = tuple(slice(o, o + n) for o, n in zip(offsets, part.shape, strict=True))
                assert torch.equal(tensor[place].nan_to_num(7.0), torch.full_like(part, 7.0)) or torch.equal(
                    tensor[place], part
                ), f"ranks disagree on {name}"
                tensor[place] = part
        assert not tensor.isnan().any(), f"nobody holds a part of {name}"
        whole[name] = tensor
    return whole


def check_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []
