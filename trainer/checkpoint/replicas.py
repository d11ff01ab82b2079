"""Comparison of the copies of dense weights that ranks hold: equal to the last bit, unless memory or a device is faulty."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sharding.world import World
from trainer.errors import ReplicasDifferError


def compare_replicas(state: Mapping[str, Any], world: World, step: int) -> None:
    """Compare the hashes of all tensors of which every rank holds a copy. Collective.

    Args:
        state: tensors by name; sharded ones are left out.
        world: all ranks.
        step: the steps trained, for the message.

    Raises:
        ReplicasDifferError: with the first tensor that differs, and the ranks.
    """
    if world.world_size == 1:
        return
    hashes = {
        name: _hash(value) for name, value in sorted(state.items()) if type(value) in (Tensor, torch.nn.Parameter)
    }
    differences = world.disagreements({"all": "".join(hashes.values())})
    if not differences:
        return
    # Only then one by one, so that a healthy comparison sends one short text.
    first = world.disagreements(hashes)[0]
    raise ReplicasDifferError(
        f"the copies of dense weights of the ranks are no longer equal after step {step:,}: {first}. Memory or a device of one of "
        "these machines is probably faulty; nothing was saved"
    )


def _hash(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().reshape(-1)
    content: Any = plain.view(torch.uint8).numpy() if plain.numel() else b""
    return hashlib.sha256(content).hexdigest()[:16]
