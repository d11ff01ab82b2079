"""Embeddings of the features of items, events and users.

    embedding(o) = sum over features f of  P_f mean over values x of E_f[x]     (categorical, buckets)
                                         + P_f x                                (numbers, content vectors)

(A table can sum values instead of averaging them.) The rows that this needs are resolved on the host, outside of the step:
`resolve_rows` turns columns of ids into indices among the unique rows of a table, or into bags of rows, which are summed on their
owner (models.features.bags). `add_features` sums the looked-up rows.

Shapes: M owners (items, events or histories), n values of all owners, R looked-up rows of a table, D model width.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from models.features.bags import Bags, Pooling, bags_of
from models.features.unique import merge_ids


@dataclass(frozen=True)
class InputFeature:
    """A feature that a model uses."""

    name: str
    table: str | None  # of its ids; None: numbers
    width: int  # of a row of the table, or of its vector of numbers
    missing: int = 0  # the id of a missing value in a column of single ids
    pooling: Pooling = "mean"  # how several values are combined
    bagged: bool = False  # values are combined where their rows are stored


@dataclass(frozen=True)
class BagRange:
    """The bags first .. stop - 1 of those that are looked up under a name."""

    name: str
    first: int
    stop: int


@dataclass(frozen=True)
class FeatureValues:
    """The values of one feature for M owners: ids, numbers or bags. The fields of the other kinds are empty."""

    index: Tensor  # ids: (n,) int64 into the looked-up rows of the table
    owner: Tensor  # ids: (n,) int64, owner of each
    weight: Tensor  # ids: (n,) float32, one over the number of values of the owner, or 1 for sums
    dense: Tensor  # numbers: (M, width) float32
    bags: BagRange | None = None  # bags: one for each owner


class Ragged(Protocol):
    """Several values for each owner o: values[offsets[o]:offsets[o + 1]]; offsets (M + 1,) int64 from 0."""

    @property
    def values(self) -> np.ndarray: ...

    @property
    def offsets(self) -> np.ndarray: ...


ValueColumn = np.ndarray | Ragged
_NO_IDS = torch.zeros(0, dtype=torch.int64)
_NO_NUMBERS = torch.zeros(0)


def id_values(index: np.ndarray, owner: np.ndarray, pooling: Pooling = "mean") -> FeatureValues:
    """Build the values of ids from an index into looked-up rows and the owner of each, (n,) each."""
    weight = 1.0 / np.bincount(owner, minlength=1)[owner] if pooling == "mean" else np.ones(owner.size)
    return FeatureValues(
        torch.from_numpy(np.ascontiguousarray(index, dtype=np.int64)),
        torch.from_numpy(np.ascontiguousarray(owner, dtype=np.int64)),
        torch.from_numpy(weight.astype(np.float32)),
        _NO_NUMBERS,
    )


def number_values(numbers: np.ndarray) -> FeatureValues:
    """Build the values of numbers (M,) or vectors (M, width)."""
    own = numbers if numbers.flags.writeable and numbers.flags.c_contiguous else numbers.copy()
    dense = torch.from_numpy(own)
    return FeatureValues(_NO_IDS, _NO_IDS, _NO_NUMBERS, dense[:, None] if dense.dim() == 1 else dense)


def bag_values(name: str, num_owners: int) -> FeatureValues:
    """Build the values of bags that are looked up under a name, one for each owner."""
    return FeatureValues(_NO_IDS, _NO_IDS, _NO_NUMBERS, _NO_NUMBERS, BagRange(name, 0, num_owners))


def bag_name(owners: str, feature: InputFeature) -> str:
    """Return the name under which bags are looked up. `owners`: the field of ItemRequest that holds their values."""
    return f"{owners}.{feature.name}"


@dataclass(frozen=True)
class FeatureColumns:
    """Features of one kind of owner (a field of ItemRequest), and a column of values for each by name."""

    owners: str
    features: tuple[InputFeature, ...]
    columns: Mapping[str, ValueColumn]


def resolve_rows(
    rows: Mapping[str, Tensor], row_of_id: Mapping[str, np.ndarray], requested: Iterable[FeatureColumns]
) -> tuple[dict[str, Tensor], dict[str, Bags], list[dict[str, FeatureValues]]]:
    """Extend a request by the values of features.

    Args:
        rows: requested rows (R,) int64 by table, ascending and unique. They keep their places; new rows follow them.
        row_of_id: the row of each id by table, where ids are not rows themselves.
        requested: the features and their columns.

    Returns:
        The rows by table, bags by name, and for each of `requested` the values by feature.
    """
    by_table: dict[str, list[tuple[dict[str, FeatureValues], InputFeature, np.ndarray, np.ndarray]]] = {}
    bags: dict[str, Bags] = {}
    resolved: list[dict[str, FeatureValues]] = []
    for group in requested:
        values: dict[str, FeatureValues] = {}
        resolved.append(values)
        for feature in group.features:
            column = group.columns[feature.name]
            if feature.table is None:
                assert isinstance(column, np.ndarray)
                values[feature.name] = number_values(column)
                continue
            entries, owner, num_owners = _entries_of(column, feature.missing)
            if feature.bagged:
                name = bag_name(group.owners, feature)
                lengths = np.bincount(owner, minlength=num_owners)
                bags[name] = bags_of(feature.table, entries, lengths, feature.pooling)
                values[feature.name] = bag_values(name, num_owners)
                continue
            if feature.table in row_of_id:
                entries = row_of_id[feature.table][entries]
            by_table.setdefault(feature.table, []).append((values, feature, entries, owner))
    together = dict(rows)
    for table, pieces in by_table.items():
        known = rows[table].numpy() if table in rows else np.zeros(0, np.int64)
        ids, index = merge_ids(known, np.concatenate([entries for _, _, entries, _ in pieces]))
        if ids is not known:
            together[table] = torch.from_numpy(ids)
        ends = np.cumsum([entries.size for _, _, entries, _ in pieces])
        for (values, feature, _, owner), place in zip(pieces, np.split(index, ends[:-1]), strict=True):
            values[feature.name] = id_values(place, owner, feature.pooling)
    return together, bags, resolved


def _entries_of(column: ValueColumn, missing: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (values, owner, number of owners), with (n,) entries of all owners. A missing single value gives no entry."""
    if isinstance(column, np.ndarray):
        owner = np.flatnonzero(column != missing)
        return column[owner], owner, column.size
    lengths = np.diff(column.offsets)
    return column.values, np.repeat(np.arange(lengths.size), lengths), lengths.size


def cut_values(given: FeatureValues, bounds: tuple[int, int], places: tuple[int, int]) -> FeatureValues:
    """Return the values of the owners bounds[0] .. bounds[1] - 1, with owners counted from 0.

    places: the bounds of their values.
    """
    inside = slice(*places)
    bags = given.bags
    if bags is not None:
        bags = replace(bags, first=bags.first + bounds[0], stop=bags.first + bounds[1])
    owner = given.owner[inside] - bounds[0]
    dense = given.dense[slice(*bounds)]
    return FeatureValues(given.index[inside], owner, given.weight[inside], dense, bags)


def concatenate_values(
    first: FeatureValues, second: FeatureValues, num_first: int, num_second: int, place: Tensor | None
) -> FeatureValues:
    """Concatenate the values of one feature for owners and for more owners. The bags of these follow the first ones.

    place: for each row that the second looks up, its place among the rows of the table.
    """
    return FeatureValues(
        torch.cat((first.index, second.index if place is None else place[second.index])),
        torch.cat((first.owner, second.owner + num_first)),
        torch.cat((first.weight, second.weight)),
        torch.cat((first.dense, second.dense)),
        None if first.bags is None else replace(first.bags, stop=num_first + num_second),
    )


def projections_of(features: Iterable[InputFeature], width: int) -> nn.ModuleDict:
    """Return the projections of features to the model's width. A table of that width needs none."""
    return nn.ModuleDict(
        {
            _key(feature): nn.Linear(feature.width, width, bias=False)
            for feature in features
            if feature.table is None or feature.width != width
        }
    )


def add_features(
    vectors_MD: Tensor,
    features: Iterable[InputFeature],
    projections: nn.ModuleDict,
    rows: Mapping[str, Tensor],
    values: Mapping[str, FeatureValues],
) -> Tensor:
    """Add the embeddings of features to the vectors of their owners (M, D).

    rows: looked-up rows (R, width) by table and bags (M, width) by name.
    """
    for feature in features:
        embedding_MD = feature_embedding(feature, rows, values[feature.name], vectors_MD.shape[0])
        if _key(feature) in projections:
            embedding_MD = projections[_key(feature)](embedding_MD.to(vectors_MD.dtype))
        vectors_MD = vectors_MD + embedding_MD
    return vectors_MD


def feature_embedding(
    feature: InputFeature, rows: Mapping[str, Tensor], given: FeatureValues, num_owners: int
) -> Tensor:
    """Return a feature's vector for each owner before any projection, (M, width): mean or sum of rows, or numbers."""
    if feature.table is None:
        return given.dense
    if given.bags is not None:
        return rows[given.bags.name][given.bags.first : given.bags.stop]
    pieces_nW = rows[feature.table].index_select(0, given.index) * given.weight[:, None]
    return pieces_nW.new_zeros((num_owners, feature.width)).index_add(0, given.owner, pieces_nW)


@torch.no_grad()
def draw_projections(features: Iterable[InputFeature], projections: nn.ModuleDict, generator: torch.Generator) -> None:
    """Draw the projections from `generator` (CPU), in the order of the features.

    Each keeps the length of its input on average.
    """
    for feature in features:
        if _key(feature) in projections:
            weight = next(projections[_key(feature)].parameters())
            weight.copy_(torch.empty(weight.shape).normal_(0.0, feature.width**-0.5, generator=generator))


def _key(feature: InputFeature) -> str:
    """Return a feature's name among modules. Names of attributes of modules, such as `type`, are not free."""
    return feature.name if not hasattr(nn.ModuleDict, feature.name) else f"{feature.name}~"
