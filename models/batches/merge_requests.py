"""Merging of look-up requests: the items of a batch, and more items that are requested later.

The invariant: the rows of the first request keep their places, so that every index into them stays valid.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models.features.bags import concatenate_bags
from models.features.catalogue import Catalogue
from models.features.request import ITEM_TABLE, ItemRequest
from models.features.values import concatenate_values


def with_items(request: ItemRequest, ids: np.ndarray, catalogue: Catalogue) -> ItemRequest:
    """Return the request extended by more items, which follow its own.

    Args:
        request: the request so far.
        ids: the new items, (V,) int64, ascending and unique. The request does not contain them yet.
        catalogue: all items.
    """
    more = catalogue.request(ids)
    num_items = request.rows[ITEM_TABLE].numel() if request.own is None else request.own.numel()
    rows = dict(request.rows)
    places = {}
    for table, requested in more.rows.items():
        rows[table], places[table] = _joined(request.rows[table].numpy(), requested.numpy())
    place = places[ITEM_TABLE]
    own = torch.cat(
        (
            torch.arange(num_items) if request.own is None else request.own,
            place if more.own is None else place[more.own],
        )
    )
    is_own_row = own.numel() == rows[ITEM_TABLE].numel() and bool((own == torch.arange(own.numel())).all())
    has_row = request.has_row
    if has_row is not None and more.has_row is not None:
        has_row = torch.cat((has_row, more.has_row))
    table_of = {feature.name: feature.table for feature in catalogue.features}
    values = {
        name: concatenate_values(first, more.values[name], num_items, ids.size, places.get(table_of[name] or ""))
        for name, first in request.values.items()
    }
    bags = {**request.bags, **{name: concatenate_bags((request.bags[name], new)) for name, new in more.bags.items()}}
    return replace(request, rows=rows, own=None if is_own_row else own, has_row=has_row, values=values, bags=bags)


def _joined(held: np.ndarray, requested: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return (rows, places): the held rows followed by the new ones, and the place of each wanted row among them.

    Both inputs contain each row once.
    """
    order = np.argsort(held, kind="stable")
    near = np.minimum(np.searchsorted(held[order], requested), max(0, held.size - 1))
    held_already = held[order][near] == requested if held.size else np.zeros(requested.size, np.bool_)
    new = ~held_already
    place = held.size + np.cumsum(new) - 1
    place[held_already] = order[near[held_already]]
    return torch.from_numpy(np.concatenate((held, requested[new]))), torch.from_numpy(place)
