"""Attention of any form, a cache-sized tile of scores at a time, which the backward pass computes again.

Scores and weights of a whole block exceed a cache, and writing them to memory costs more than computing them twice. So the
forward pass keeps queries, keys and values only, and the backward pass computes the same tiles again. The memory is that of one
tile. Scores of an activation unit are an exception: they are kept up to a bound.

Shapes: R rows, Q queries and K keys of a row, H heads of queries, G heads of keys and values, V width of values, C channels.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models import devices
from models.attention.normalise import normalise, penalty_of
from models.attention.terms import AttentionTerms
from models.layers.dropout import drop

PIECE_SCORES = 1 << 18  # scores held at a time on a CPU: with derived tensors, about its second-level cache
GPU_PIECE_SCORES = 1 << 26
# A unit does much work per number, so larger tiles with fewer operations pay off. Its results are cheaper to keep than to compute
# again, up to this many numbers of a batch (in about four tensors each).
UNIT_TILES = 4
UNIT_KEPT = 1 << 24


class PaddedBlock(Protocol):
    """R rows of Q queries that attend to the same K keys. `models.attention.blocks.HistoryBlock` describes the tensors.

    may_be_blind: a real query can see no key at all; its result is then zero.
    """

    @property
    def query_gather(self) -> Tensor: ...
    @property
    def key_gather(self) -> Tensor: ...
    @property
    def is_counted(self) -> Tensor: ...
    @property
    def may_be_blind(self) -> bool: ...
    def last_key(self, rows: slice, queries: slice) -> int: ...
    def pairs(self, rows: slice, queries: slice, stop: int) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class _Tile:
    """Rows and queries of a block, and the keys up to `stop` that they can see."""

    number: int
    rows: slice
    queries: slice
    stop: int


@dataclass(frozen=True)
class _TiledBlock:
    """The data of a block that forward and backward share."""

    block: PaddedBlock
    ages: Tensor | None  # (R, Q, K), if a bias uses time
    parts: AttentionTerms
    seed: int

    def tiles(self, num_heads: int, device: torch.device) -> Iterator[_Tile]:
        rows, queries = self.block.query_gather.shape
        keys = self.block.key_gather.shape[1]
        size = PIECE_SCORES if devices.is_host(device) else GPU_PIECE_SCORES
        if self.parts.unit is not None:
            size = UNIT_TILES * size // self.parts.unit.numbers_per_score
        rows_each = max(1, size // max(1, num_heads * queries * keys))
        queries_each = queries if rows_each > 1 else max(16, size // max(1, num_heads * keys))
        number = 0
        for row in range(0, rows, rows_each):
            for query in range(0, queries, queries_each):
                some = slice(row, min(rows, row + rows_each))
                asking = slice(query, min(queries, query + queries_each))
                yield _Tile(number, some, asking, self.block.last_key(some, asking))
                number += 1

    def compute(self, tile: _Tile, query: Tensor, key: Tensor, value: Tensor, *own: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a tile.

        Args:
            tile: the rows and queries.
            query: (r, H, q, K).
            key: (r, G, stop, K).
            value: (r, G, stop, V).
            own: key and value (r, G, q, .) of the queries themselves, if each sees its own after the others.

        Returns:
            The output (r, C, H, q, V), and the penalty summed over rows, queries and heads.
        """
        parts = self.parts
        shared = query.shape[1] // key.shape[1]
        if shared > 1:
            key, value, *own = (t.repeat_interleave(shared, dim=1) for t in (key, value, *own))  # type: ignore[assignment]
        maps = self.maps(tile, query, key, *own[:1])
        penalty = maps[0].new_zeros(())
        if parts.with_penalty:
            counted = self.block.is_counted[tile.rows, None, tile.queries]
            penalty = (penalty_of(maps[0], parts.config.normalisation) * counted).sum()
        if parts.threshold:
            generator = torch.Generator(query.device).manual_seed(self.seed + tile.number)
            maps = [drop(part, parts.threshold, generator) for part in maps]
        return torch.stack([_seen(part.to(value.dtype), value, *own[1:]) for part in maps], dim=1), penalty

    def maps(self, tile: _Tile, query: Tensor, key: Tensor, *own: Tensor) -> list[Tensor]:
        """Return the weights of a tile, (r, H, q, stop), and with bias_as = "channel" the map of each bias.

        Args:
            tile: the rows and queries.
            query: (r, H, q, K).
            key: (r, H, stop, K).
            own: key (r, H, q, K) of the queries themselves, if each sees its own after the others; the maps then have a key more.
        """
        parts = self.parts
        config = self.parts.config
        distance, visible = self.block.pairs(tile.rows, tile.queries, tile.stop)
        visible = visible[:, None]
        scores = self._scores(query, key, visible)
        if own:
            own_key = own[0].to(scores.dtype)
            own_scores = (query.to(scores.dtype) * parts.scale * own_key).sum(dim=-1, keepdim=True)
            scores = torch.cat((scores, own_scores), dim=-1)
        biases = self._biases(tile, distance, scores.dtype, bool(own))
        if config.bias_as == "score":
            for bias in biases:
                scores = scores + bias
        weights = normalise(scores, visible, config.normalisation, parts.silu_divisor)
        if self.block.may_be_blind:
            weights = weights * visible
        maps = [weights]
        if config.bias_as == "channel":
            maps += [(bias * visible).expand_as(weights) for bias in biases]
        return maps

    @property
    def is_silu(self) -> bool:
        """Return whether these are SiLU weights of scores and biases and nothing else, as in HSTU."""
        parts = self.parts
        plain = parts.unit is None and not parts.threshold and not parts.with_penalty and not self.block.may_be_blind
        return plain and parts.config.normalisation == "silu" and parts.config.bias_as == "score"

    def silu_gradients(
        self, tile: _Tile, output_gradient: Tensor, learned: Sequence[Tensor], query: Tensor, key: Tensor, value: Tensor
    ) -> list[Tensor | None]:
        """Return the gradients of query, key, value and learned weights, if `is_silu`.

        With scores s, weights w = silu(s) / n and the gradient g of the output: dv = w^T g, ds = (g v^T) silu'(s) / n, dq = ds k,
        dk = ds^T q. Autograd would compute the output again, which is one product of six, and keep each step.

        Args:
            tile: the rows and queries.
            output_gradient: (r, 1, H, q, V).
            learned: weights of the biases.
            query: (r, H, q, K).
            key: (r, G, stop, K).
            value: (r, G, stop, V).
        """
        shared = query.shape[1] // key.shape[1]
        distance, visible = self.block.pairs(tile.rows, tile.queries, tile.stop)
        visible = visible[:, None]
        exact = torch.promote_types(query.dtype, torch.float32)
        with torch.enable_grad():
            biases = self._biases(tile, distance, exact, False)
        with torch.no_grad():
            keys, values = (t.repeat_interleave(shared, dim=1) if shared > 1 else t for t in (key, value))
            keys = keys.to(exact)
            scaled = query.to(exact) * self.parts.scale
            scores = scaled @ keys.transpose(-1, -2)
            for bias in biases:
                scores += bias
            weights = normalise(scores, visible, "silu", self.parts.silu_divisor)
            of_value = weights.to(value.dtype).transpose(-1, -2) @ output_gradient[:, 0]
            of_scores = (output_gradient[:, 0] @ values.transpose(-1, -2)).to(exact).mul_(visible)
            of_scores = torch.ops.aten.silu_backward(of_scores.div_(self.parts.silu_divisor), scores)
            of_query = (of_scores @ keys).mul_(self.parts.scale)
            of_key = (scaled.transpose(-1, -2) @ of_scores).transpose(-1, -2)
            if shared > 1:
                of_key, of_value = (t.unflatten(1, (-1, shared)).sum(dim=2) for t in (of_key, of_value))
        of_learned: Sequence[Tensor | None] = []
        if learned:
            sums = [of_scores.sum_to_size(bias.shape) for bias in biases]
            of_learned = torch.autograd.grad(biases, learned, sums, allow_unused=True)
        return [of_query.to(query.dtype), of_key.to(key.dtype), of_value, *of_learned]

    def _biases(self, tile: _Tile, distance: Tensor, dtype: torch.dtype, with_own: bool) -> list[Tensor]:
        """Return the biases of a tile, (1 or r, H, q, k) each. `with_own`: each query also has a key of its own, the last one."""
        parts = self.parts
        biases = []
        if parts.position is not None:
            biases.append(parts.position(distance).to(dtype))
        if parts.time is not None:
            assert self.ages is not None
            ages = self.ages[tile.rows, tile.queries]
            last = ages[..., -1:]
            ages = ages[..., : tile.stop]
            biases.append(parts.time(torch.cat((ages, last), dim=-1) if with_own else ages).to(dtype))
        return biases

    def _scores(self, query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
        """Return the scores (r, H, q, k) in float32 at least.

        A product in bfloat16 would round scores before biases and exponentials.
        """
        unit = self.parts.unit
        exact = torch.promote_types(query.dtype, torch.float32)
        if unit is None:
            return (query.to(exact) * self.parts.scale) @ key.to(exact).transpose(-1, -2)
        scores: Tensor = unit(query, key, visible)
        return scores.to(exact)


def _seen(weights: Tensor, value: Tensor, own: Tensor | None = None) -> Tensor:
    """Return the weighted sum of values, (r, H, q, V). With `own` the last weight of each query is for its own value."""
    if own is None:
        return weights @ value
    return weights[..., :-1] @ value + weights[..., -1:] * own


def tiled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block: PaddedBlock,
    ages: Tensor | None,
    parts: AttentionTerms,
    own: tuple[Tensor, ...] = (),
    keep: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute attention in tiles.

    Args:
        query: (R, H, Q, K).
        key: (R, G, K, K).
        value: (R, G, K, V).
        block: the rows.
        ages: of pairs (R, Q, K), if a bias uses time.
        parts: the form of the attention.
        own: key (R, G, Q, K) and value (R, G, Q, V) of the queries, if each sees itself too.
        keep: keep intermediate results for the backward pass. Tiles with a part of their rows' queries are recomputed anyway.

    Returns:
        The output (R, C, H, Q, V) and the penalty, a scalar.
    """
    # Drawn from the global generator, so that dropout stays a function of its seed. The backward pass seeds the tiles again.
    seed = int(torch.randint(2**62, ()).numpy()) if parts.threshold else 0
    tiled = _TiledBlock(block, ages, parts, seed)
    if keep:
        tiles = list(tiled.tiles(query.shape[1], query.device))
        if all(tile.queries == slice(0, query.shape[2]) for tile in tiles):
            return _kept(tiled, tiles, query, key, value, *own)
    output, penalty = _TiledAttention.apply(tiled, 3 + len(own), query, key, value, *own, *parts.parameters)
    return output, penalty


def whole_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block: PaddedBlock,
    ages: Tensor | None,
    parts: AttentionTerms,
    own: tuple[Tensor, ...] = (),
) -> Tensor:
    """Compute attention in a single tile, for torch.export: no step depends on sizes, so they may be symbols.

    Arguments are those of `tiled_attention`. Returns the output (R, C, H, Q, V).
    """
    tile = _Tile(0, slice(None), slice(None), key.shape[2])
    output, _ = _TiledBlock(block, ages, parts, 0).compute(tile, query, key, value, *own)
    return output


def whole_maps(
    query: Tensor,
    key: Tensor,
    block: PaddedBlock,
    ages: Tensor | None,
    parts: AttentionTerms,
    own: tuple[Tensor, ...] = (),
) -> Tensor:
    """Return the weights of a block and the maps of biases, (R, C, H, Q, K), with one more key for `own`.

    Padding has weights too.

    Args:
        query: as for `tiled_attention`.
        key: as for `tiled_attention`.
        block: as for `tiled_attention`.
        ages: as for `tiled_attention`.
        parts: as for `tiled_attention`.
        own: key (R, G, Q, K) of the queries, if each sees itself too.
    """
    tile = _Tile(0, slice(None), slice(0, query.shape[2]), key.shape[2])
    shared = query.shape[1] // key.shape[1]
    key, *own_key = (tensor.repeat_interleave(shared, dim=1) for tensor in (key, *own))
    return torch.stack(_TiledBlock(block, ages, parts, 0).maps(tile, query, key, *own_key), dim=1)


def are_kept(blocks: Iterable[PaddedBlock], num_heads: int, parts: AttentionTerms) -> bool:
    """Return whether to keep the intermediate results of an activation unit for all of these blocks."""
    if parts.unit is None:
        return False
    scores = sum(block.query_gather.numel() * block.key_gather.shape[1] for block in blocks)
    return scores * num_heads * parts.unit.numbers_per_score <= UNIT_KEPT


def _kept(tiled: _TiledBlock, tiles: list[_Tile], *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Compute tiles of whole rows, one by one, with a graph."""
    sizes = [tile.rows.stop - tile.rows.start for tile in tiles]
    cut = zip(tiles, *(tensor.split(sizes) for tensor in tensors), strict=True)
    with torch.autocast(tensors[0].device.type, enabled=False):
        computed = [
            tiled.compute(tile, query, key[:, :, : tile.stop], value[:, :, : tile.stop], *own)
            for tile, query, key, value, *own in cut
        ]
    return torch.cat([output for output, _ in computed]), torch.stack([penalty for _, penalty in computed]).sum()


class _TiledAttention(torch.autograd.Function):
    """Tiled attention as an autograd function.

    num_cut: number of tensors that are split into tiles. The tensors after them are learned, and whole in every tile.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, tiled: _TiledBlock, num_cut: int, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        query, _, value, *_ = tensors
        rows, heads, queries = query.shape[:3]
        output = value.new_zeros((rows, tiled.parts.config.num_channels, heads, queries, value.shape[-1]))
        penalties = [output.new_zeros((), dtype=torch.float32)]
        with torch.autocast(query.device.type, enabled=False):
            for tile in tiled.tiles(heads, query.device):
                part, penalty = tiled.compute(tile, *_sliced(tile, *tensors[:num_cut]))
                output[tile.rows, :, :, tile.queries] = part
                penalties.append(penalty.float())
        ctx.save_for_backward(*tensors)
        ctx.tiled = tiled  # type: ignore[attr-defined]
        ctx.num_cut = num_cut  # type: ignore[attr-defined]
        return output, torch.stack(penalties).sum()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors  # type: ignore[attr-defined]
        num_cut = ctx.num_cut  # type: ignore[attr-defined]
        tiled: _TiledBlock = ctx.tiled  # type: ignore[attr-defined]
        query = tensors[0]
        # Frozen weights have no gradient: of a trained model that is explained, only its inputs have one.
        learned = [tensor for tensor in tensors[num_cut:] if tensor.requires_grad]
        totals = [torch.zeros_like(tensor) for tensor in (*tensors[:num_cut], *learned)]
        has_own_gradient = tiled.is_silu and num_cut == 3
        with torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
            for tile in tiled.tiles(query.shape[1], query.device):
                totals_of_tile = [*_sliced(tile, *totals[:num_cut]), *totals[num_cut:]]
                if has_own_gradient:
                    output_gradient = grad_outputs[0][tile.rows, :, :, tile.queries]
                    parts = _sliced(tile, *tensors[:num_cut])
                    _add(totals_of_tile, tiled.silu_gradients(tile, output_gradient, learned, *parts))
                    continue
                leaves = [part.detach().requires_grad_() for part in _sliced(tile, *tensors[:num_cut])]
                part, penalty = tiled.compute(tile, *leaves)
                outputs = [part]
                output_gradients = [grad_outputs[0][tile.rows, :, :, tile.queries]]
                if tiled.parts.with_penalty:
                    outputs = [*outputs, penalty]
                    output_gradients = [*output_gradients, grad_outputs[1].to(penalty.dtype)]
                gradients = torch.autograd.grad(outputs, [*leaves, *learned], output_gradients, allow_unused=True)
                _add(totals_of_tile, gradients)
        of_learned = iter(totals[num_cut:])
        rest = [next(of_learned) if tensor.requires_grad else None for tensor in tensors[num_cut:]]
        return None, None, *totals[:num_cut], *rest


def _add(totals: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to their totals in place."""
    for total, gradient in zip(totals, gradients, strict=True):
        if gradient is not None:
            total += gradient


def _sliced(tile: _Tile, query: Tensor, key: Tensor, value: Tensor, *own: Tensor) -> list[Tensor]:
    keys = (tile.rows, slice(None), slice(None, tile.stop))
    queries = (tile.rows, slice(None), tile.queries)
    return [query[queries], key[keys], value[keys], *(tensor[queries] for tensor in own)]
