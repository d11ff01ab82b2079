"""What features say, of whatever has them: items, events, users.

    said(o) = sum over features f of  P_f mean over values x of E_f[x]     (categorical, buckets)
                                    + P_f x                                (numbers, content vectors)

(A table may sum values instead of averaging them.) The rows that this needs are resolved on the host, outside the step:
`resolve_rows` turns columns of ids into indices among the unique rows of a table that are looked up, or into bags whose
rows are summed on their owner (models.features.bags). `add_features` sums the looked-up rows.

Shapes: M owners (items, events or histories), n values of all owners, R looked-up rows of a table, D model width.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from models.features.bags import Bags, Pooling, bags_of
from models.features.unique import joined_ids


@dataclass(frozen=True)
class InputFeature:
    """A feature that a model uses. table: of its ids, else none; width: of a row of the table, or numbers in its vector.

    missing: in a column of single ids, the one that says nothing. pooling: what becomes of several values; bagged: whether that
    happens where the rows lie.
    """

    name: str
    table: str | None
    width: int
    missing: int = 0
    pooling: Pooling = "mean"
    bagged: bool = False


@dataclass(frozen=True)
class BagRange:
    """The bags first .. stop - 1 of those looked up under a name."""

    name: str
    first: int
    stop: int


@dataclass(frozen=True)
class FeatureValues:
    """The values of one feature for M owners.

    Of ids: index (n,) int64 into the looked-up rows of its table, owner (n,) int64 whose each is, weight (n,) float32 one
    over the number of values of that owner (ones for sums). Of numbers: dense (M, width) float32. Of bags: bags, one for each
    owner. The others are empty.
    """

    index: Tensor
    owner: Tensor
    weight: Tensor
    dense: Tensor
    bags: BagRange | None = None

    def to(self, device: torch.device) -> "FeatureValues":
        index, owner, weight, dense = (t.to(device) for t in (self.index, self.owner, self.weight, self.dense))
        return FeatureValues(index, owner, weight, dense, self.bags)


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
    """Of ids: index into looked-up rows and owner, (n,) each."""
    weight = 1.0 / np.bincount(owner, minlength=1)[owner] if pooling == "mean" else np.ones(owner.size)
    return FeatureValues(
        torch.from_numpy(np.ascontiguousarray(index, dtype=np.int64)),
        torch.from_numpy(np.ascontiguousarray(owner, dtype=np.int64)),
        torch.from_numpy(weight.astype(np.float32)),
        _NO_NUMBERS,
    )


def number_values(numbers: np.ndarray) -> FeatureValues:
    """Of numbers (M,) or vectors (M, width)."""
    own = numbers if numbers.flags.writeable and numbers.flags.c_contiguous else numbers.copy()
    dense = torch.from_numpy(own)
    return FeatureValues(_NO_IDS, _NO_IDS, _NO_NUMBERS, dense[:, None] if dense.dim() == 1 else dense)


def bag_values(name: str, num_owners: int) -> FeatureValues:
    """Of bags that are looked up under a name, one for each owner."""
    return FeatureValues(_NO_IDS, _NO_IDS, _NO_NUMBERS, _NO_NUMBERS, BagRange(name, 0, num_owners))


def bag_name(owners: str, feature: InputFeature) -> str:
    """Under which bags are looked up. owners: whose they are, as an ItemRequest has it."""
    return f"{owners}.{feature.name}"


@dataclass(frozen=True)
class Asked:
    """Features of one kind of owner, called as in an ItemRequest, and a column with their values for each, by name."""

    owners: str
    features: tuple[InputFeature, ...]
    columns: Mapping[str, ValueColumn]


def resolve_rows(
    rows: Mapping[str, Tensor], row_of_id: Mapping[str, np.ndarray], asked: Iterable[Asked]
) -> tuple[dict[str, Tensor], dict[str, Bags], list[dict[str, FeatureValues]]]:
    """Ask for the values of features besides what is asked for already: (rows by table, bags by name, values of each of `asked`
    by feature).

    rows: (R,) int64 ascending, each once; they keep their places, and what is new comes behind them.
    row_of_id: by table, the row that each id has, where ids are not rows themselves.
    """
    wanted: dict[str, list[tuple[dict[str, FeatureValues], InputFeature, np.ndarray, np.ndarray]]] = {}
    bags: dict[str, Bags] = {}
    found: list[dict[str, FeatureValues]] = []
    for group in asked:
        values: dict[str, FeatureValues] = {}
        found.append(values)
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
            wanted.setdefault(feature.table, []).append((values, feature, entries, owner))
    together = dict(rows)
    for table, pieces in wanted.items():
        known = rows[table].numpy() if table in rows else np.zeros(0, np.int64)
        ids, index = joined_ids(known, np.concatenate([entries for _, _, entries, _ in pieces]))
        if ids is not known:
            together[table] = torch.from_numpy(ids)
        ends = np.cumsum([entries.size for _, _, entries, _ in pieces])
        for (values, feature, _, owner), place in zip(pieces, np.split(index, ends[:-1]), strict=True):
            values[feature.name] = id_values(place, owner, feature.pooling)
    return together, bags, found


def _entries_of(column: ValueColumn, missing: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(values, owner, number of owners) of all owners, (n,) each; a single value that is missing is none."""
    if isinstance(column, np.ndarray):
        owner = np.flatnonzero(column != missing)
        return column[owner], owner, column.size
    lengths = np.diff(column.offsets)
    return column.values, np.repeat(np.arange(lengths.size), lengths), lengths.size


def cut_values(given: FeatureValues, bounds: tuple[int, int], places: tuple[int, int]) -> FeatureValues:
    """What a feature says of the owners bounds[0] .. bounds[1] - 1, as if there were no others. places: of their values."""
    inside, bags = slice(*places), given.bags
    if bags is not None:
        bags = replace(bags, first=bags.first + bounds[0], stop=bags.first + bounds[1])
    owner, dense = given.owner[inside] - bounds[0], given.dense[slice(*bounds)]
    return FeatureValues(given.index[inside], owner, given.weight[inside], dense, bags)


def joined_values(
    first: FeatureValues, second: FeatureValues, num_first: int, num_second: int, place: Tensor | None
) -> FeatureValues:
    """Values of one feature for owners and then for more of them, whose bags stand behind those of the others too.

    place: where the rows of its table are that the second looks up.
    """
    return FeatureValues(
        torch.cat((first.index, second.index if place is None else place[second.index])),
        torch.cat((first.owner, second.owner + num_first)),
        torch.cat((first.weight, second.weight)),
        torch.cat((first.dense, second.dense)),
        None if first.bags is None else replace(first.bags, stop=num_first + num_second),
    )


def projections_of(features: Iterable[InputFeature], width: int) -> nn.ModuleDict:
    """What takes each feature to the model's width; a table that is as wide needs nothing."""
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
    """What features say, added to the vectors of their owners (M, D). rows: by table (R, width) and by name of bags (M, width),
    what was looked up."""
    for feature in features:
        said = said_of(feature, rows, values[feature.name], vectors_MD.shape[0])
        if _key(feature) in projections:
            said = projections[_key(feature)](said.to(vectors_MD.dtype))
        vectors_MD = vectors_MD + said
    return vectors_MD


def said_of(feature: InputFeature, rows: Mapping[str, Tensor], given: FeatureValues, num_owners: int) -> Tensor:
    """(M, width): what a feature says of each owner before any projection, the mean (or sum) of its rows or its numbers."""
    if feature.table is None:
        return given.dense
    if given.bags is not None:
        return rows[given.bags.name][given.bags.first : given.bags.stop]
    pieces_nW = rows[feature.table].index_select(0, given.index) * given.weight[:, None]
    return pieces_nW.new_zeros((num_owners, feature.width)).index_add(0, given.owner, pieces_nW)


@torch.no_grad()
def draw_projections(features: Iterable[InputFeature], projections: nn.ModuleDict, generator: torch.Generator) -> None:
    """Draw them from `generator` (CPU), in the order of the features: each keeps the length of its input on average."""
    for feature in features:
        if _key(feature) in projections:
            weight = next(projections[_key(feature)].parameters())
            weight.copy_(torch.empty(weight.shape).normal_(0.0, feature.width**-0.5, generator=generator))


def _key(feature: InputFeature) -> str:
    """Its name among modules, where a name that modules have already (such as `type`) is not free."""
    return feature.name if not hasattr(nn.ModuleDict, feature.name) else f"{feature.name}~"
