"""Pads requests to the same number of bags on every rank, where parts of a bag are summed over ranks on the way back.

TorchRec scatters such sums over the ranks and gathers their gradients. gloo does neither with unequal numbers of bags, and
TorchRec's batches with different sizes per feature fail in it too. So ranks agree on the largest number, in one collective of
one integer, and the others add empty bags, which cost the vectors that come back.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sharding.world import World


def pad_requests(collection: nn.Module, world: World) -> None:
    """Pad all later requests to this sharded EmbeddingBagCollection. Every call of it is then collective.

    The result has as many bags as the largest request, with the requested ones first.
    """

    world = world.on_cpu()  # the host needs the number, and must not wait for the work of a GPU

    def padded(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        request, *others = arguments
        return (pad_to_longest(request, world), *others)

    collection.register_forward_pre_hook(padded)


def pad_to_longest(request: KeyedJaggedTensor, world: World) -> KeyedJaggedTensor:
    """Return the request followed by empty bags, so that all ranks have as many of each key. Collective."""
    stride = request.stride()
    keys = request.keys()
    longest = int(world.max(torch.tensor(stride, device=world.device)).item())
    if longest == stride:
        return request
    lengths = F.pad(request.lengths().view(len(keys), stride), (0, longest - stride))
    # Empty bags change no number of rows. TorchRec would otherwise read these numbers from the device.
    numbers = request.length_per_key_or_none()
    return KeyedJaggedTensor(
        keys, request.values(), request.weights_or_none(), lengths=lengths.flatten(), length_per_key=numbers
    )
