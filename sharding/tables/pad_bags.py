"""Equally many bags on every rank, where parts of a bag that lie on several ranks are added up on their way back.

TorchRec scatters such sums over the ranks, and gathers their gradients; gloo does neither with unequal numbers of bags, and
TorchRec's batches that differ by feature fail in it too. So ranks agree on the largest number, in one collective of one integer,
and the others ask for empty bags besides, which cost the vectors that come back.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sharding.world import World


def pad_requests(collection: nn.Module, world: World) -> None:
    """From now on, what is asked of this sharded EmbeddingBagCollection is padded first: collective whenever it is called.

    The answer has as many bags as the largest request, those asked for first.
    """

    def padded(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        request, *others = arguments
        return (as_long_as_the_longest(request, world), *others)

    collection.register_forward_pre_hook(padded)


def as_long_as_the_longest(request: KeyedJaggedTensor, world: World) -> KeyedJaggedTensor:
    """The request with empty bags behind its own: as many of each key as any rank asks for. Collective."""
    stride, keys = request.stride(), request.keys()
    longest = int(world.max(torch.tensor(stride, device=world.device)).item())
    if longest == stride:
        return request
    lengths = F.pad(request.lengths().view(len(keys), stride), (0, longest - stride))
    return KeyedJaggedTensor(keys, request.values(), request.weights_or_none(), lengths=lengths.flatten())
