"""Requests of a look-up that are sent to the ranks that hold the rows before the look-up itself.

TorchRec's sharded collections look up in three parts: they send the request, in two collectives (its sizes, then its ids); they
look the ids up; they send the rows back. The first part needs no table, so it can overlap with the step before, which still changes
the tables. TorchRec's pipelines do that for whole training steps. Here only this part of them is used, because the trainer cuts the
graph at the tables (trainer/loop/step.py).
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class EarlyRequest:
    """A request to one collection. Creating it starts to send the sizes; a collection that is not sharded sends nothing.

    All methods are collective, and ranks call them in the same order. `looked_up` gives exactly what the collection itself would.
    """

    def __init__(self, collection: nn.Module, request: KeyedJaggedTensor) -> None:
        self._collection: Any = collection
        self._request = request
        self._sizes: Any = None
        self._ids: Any = None
        if isinstance(collection, ShardedEmbeddingCollection | ShardedEmbeddingBagCollection):
            for hook in collection._forward_pre_hooks.values():  # they pad requests (sharding/tables/pad_bags.py)
                (request,) = hook(collection, (request,))
            self._context = collection.create_context()
            self._sizes = collection.input_dist(self._context, request)

    def send_ids(self) -> None:
        """Wait for the sizes of all ranks, and start to send the ids."""
        if self._sizes is not None and self._ids is None:
            self._ids = self._sizes.wait()

    def looked_up(self) -> Any:
        """Wait for the ids of all ranks, and return the rows."""
        if self._sizes is None:
            return self._collection(self._request)
        self.send_ids()
        return self._collection.compute_and_output_dist(self._context, self._ids.wait())


def send_requests(
    collections: Mapping[str, nn.Module], requests: Mapping[str, KeyedJaggedTensor]
) -> dict[str, EarlyRequest]:
    """Send the requests of one look-up to all collections, by name. Collective."""
    return {name: EarlyRequest(collections[name], request) for name, request in requests.items()}
