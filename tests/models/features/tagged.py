"""A catalogue with several values per feature of items, events, users and candidates, looked up by row or as bags."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.features.bags import Pooling
from models.features.inputs import Inputs
from models.features.items import Catalogue, IdColumn, ItemRequest
from models.features.values import InputFeature, said_of
from models.tables import EmbeddingTables, TableSpec

NUM_ITEMS, WIDTH = 14, 8
ROWS = {"item": NUM_ITEMS, "label": 29, "shop": 7, "city": 8}
DIMS = {"item": WIDTH, "label": 16, "shop": 8, "city": 8}
OWNERS = ("values", "events", "users", "candidates")


@dataclass(frozen=True)
class Shape:
    """How many events, users and candidates a rank has, and from which random numbers their values are drawn."""

    events: int
    users: int
    candidates: int
    seed: int


def lists(count: int, num_rows: int, seed: int, most: int = 5) -> IdColumn:
    """Return none to `most` values for each of `count` owners; repeats among them."""
    random = np.random.default_rng(seed)
    offsets = np.concatenate(([0], np.cumsum(random.integers(0, most + 1, count))))
    return IdColumn(random.integers(0, num_rows, offsets[-1]), offsets)


def features_of(bagged: bool, pooling: Pooling) -> dict[str, tuple[InputFeature, ...]]:
    """Return a catalogue. Two features of items share a table with those of events, users and candidates."""

    def feature(name: str, table: str) -> InputFeature:
        return InputFeature(name, table, DIMS[table], pooling=pooling, bagged=bagged)

    return {
        "values": (feature("tags", "label"), feature("genres", "label"), feature("shops", "shop")),
        "events": (feature("words", "label"),),
        "users": (feature("likes", "label"), feature("city", "city")),
        "candidates": (feature("words", "label"),),
    }


def catalogue(bagged: bool, pooling: Pooling = "mean") -> Catalogue:
    features = features_of(bagged, pooling)
    columns = {f.name: lists(NUM_ITEMS, ROWS[f.table or ""], seed) for seed, f in enumerate(features["values"])}
    inputs = Inputs(features["events"], features["users"], None, features["candidates"])
    return Catalogue(NUM_ITEMS, NUM_ITEMS, features=features["values"], columns=columns, inputs=inputs)


def request_of(known: Catalogue, shape: Shape) -> ItemRequest:
    """Return a request of some items, possibly none, with features of events, users and candidates."""
    random = np.random.default_rng(shape.seed)
    ids = np.flatnonzero(random.random(NUM_ITEMS) < 0.6) if shape.events else np.zeros(0, np.int64)
    told = {
        owners: {"words": lists(count, ROWS["label"], shape.seed + place)}
        for place, (owners, count) in enumerate((("events", shape.events), ("candidates", shape.candidates)))
    }
    users = {
        "likes": lists(shape.users, ROWS["label"], shape.seed + 7),
        "city": random.integers(0, ROWS["city"], shape.users),
    }
    return known.beside(known.request(ids), told["events"], users, told["candidates"])


class Tagged(nn.Module):
    """A loss that is a sum over all owners and what their features say."""

    def __init__(self, known: Catalogue, device: torch.device, replicated: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.known = known
        pooling = known.features[0].pooling
        specs = [
            TableSpec(name, rows, DIMS[name], name in replicated, known.bags_of_table(name), pooling)
            for name, rows in ROWS.items()
        ]
        self.tables = EmbeddingTables(specs, device)
        self.scale = nn.Parameter(torch.ones(1))

    def said(self, request: ItemRequest) -> dict[str, Tensor]:
        """Return the vectors by owners and feature, (M, width)."""
        rows, known, result = self.tables(request.rows, request.bags), self.known, {}
        features = dict(
            zip(OWNERS, (known.features, known.inputs.events, known.inputs.users, known.inputs.candidates), strict=True)
        )
        for owners, of_owners in features.items():
            for feature in of_owners:
                given = getattr(request, owners)
                if feature.name in given:
                    result[f"{owners}.{feature.name}"] = said_of(
                        feature, rows, given[feature.name], self.count(request, owners, feature.name)
                    )
        result["item"] = rows["item"]
        return result

    def count(self, request: ItemRequest, owners: str, feature: str) -> int:
        """Return the vectors; owners are distinguished by the largest among those that have values, or by the bags."""
        given = getattr(request, owners)[feature]
        if given.bags is not None:
            return int(given.bags.stop - given.bags.first)
        return int(given.owner.max()) + 1 if given.owner.numel() else 0

    def forward(self, request: ItemRequest) -> Tensor:
        losses = []
        for place, said_MW in enumerate(self.said(request).values()):
            slope_W = torch.linspace(-0.5, 0.5 + 0.1 * place, said_MW.shape[1])
            # Owners without values add nothing to the loss, whether or not they are counted.
            losses.append(
                ((said_MW * slope_W * self.scale).sum(dim=1).sin() ** 2 + 0.1 * said_MW.square().sum(dim=1)).sum()
            )
        return torch.stack(losses).sum()
