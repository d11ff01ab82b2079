"""What has to be looked up for the items of a batch, and then for more of them: two requests as one.

The invariant: whatever the first request looked up stays where it is, so that every index into it stays right.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models.features.bags import joined_bags
from models.features.items import ITEM_TABLE, Catalogue, ItemRequest
from models.features.values import joined_values


def with_items(request: ItemRequest, ids: np.ndarray, catalogue: Catalogue) -> ItemRequest:
    """The request with items `ids` ((V,) int64, ascending and each once, none asked for before) behind its own."""
    more = catalogue.request(ids)
    num_items = request.rows[ITEM_TABLE].numel() if request.own is None else request.own.numel()
    rows, places = dict(request.rows), {}
    for table, wanted in more.rows.items():
        rows[table], places[table] = _joined(request.rows[table].numpy(), wanted.numpy())
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
        name: joined_values(first, more.values[name], num_items, ids.size, places.get(table_of[name] or ""))
        for name, first in request.values.items()
    }
    bags = {**request.bags, **{name: joined_bags((request.bags[name], new)) for name, new in more.bags.items()}}
    return replace(request, rows=rows, own=None if is_own_row else own, has_row=has_row, values=values, bags=bags)


def _joined(held: np.ndarray, wanted: np.ndarray) -> tuple[Tensor, Tensor]:
    """(rows: those held and behind them the new ones, the place of each wanted row among them). Both have each row once."""
    order = np.argsort(held, kind="stable")
    near = np.minimum(np.searchsorted(held[order], wanted), max(0, held.size - 1))
    found = held[order][near] == wanted if held.size else np.zeros(wanted.size, np.bool_)
    new = ~found
    place = held.size + np.cumsum(new) - 1
    place[found] = order[near[found]]
    return torch.from_numpy(np.concatenate((held, wanted[new]))), torch.from_numpy(place)
