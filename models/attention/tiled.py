"""Attention of any form, a cache-sized piece of scores at a time, computed again in the backward pass instead of kept.

Scores and weights of a whole block do not fit in a cache, and written to memory they would cost more than computing them twice:
so forward keeps queries, keys and values only, and backward goes through the same pieces. Memory is that of one piece. Scores by a
unit are the exception, up to a bound.

Shapes: R rows, Q queries and K keys of a row, H heads of queries, G heads of keys and values, C channels.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.attention.normalise import normalise, penalty_of
from models.attention.terms import AttentionTerms
from models.layers.dropout import drop

PIECE_SCORES = 1 << 18  # scores held at a time on a CPU: with what is made of them, about its second-level cache
GPU_PIECE_SCORES = 1 << 26
# A unit does much with the numbers that it holds for each score: with more in a piece fewer operations still pay, and what it
# computes costs more to compute again than to keep, up to so many numbers of a batch (each of about four tensors).
UNIT_PIECES = 4
UNIT_KEPT = 1 << 24


class PaddedBlock(Protocol):
    """R rows of Q queries that look at the same K keys; for what its tensors are see `models.attention.blocks.Block`.

    may_be_blind: whether a real query may see no key at all, whose result is then zero.
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
class _Piece:
    """Rows and queries of a block, and the keys up to `stop` that they may see."""

    number: int
    rows: slice
    queries: slice
    stop: int


@dataclass(frozen=True)
class _Work:
    """What of a block is the same in forward and backward. ages: (R, Q, K), where a bias looks at time."""

    block: PaddedBlock
    ages: Tensor | None
    parts: AttentionTerms
    seed: int

    def pieces(self, num_heads: int, device: torch.device) -> Iterator[_Piece]:
        rows, queries = self.block.query_gather.shape
        keys = self.block.key_gather.shape[1]
        size = PIECE_SCORES if device.type == "cpu" else GPU_PIECE_SCORES
        if self.parts.unit is not None:
            size = UNIT_PIECES * size // self.parts.unit.numbers_per_score
        rows_each = max(1, size // max(1, num_heads * queries * keys))
        queries_each = queries if rows_each > 1 else max(16, size // max(1, num_heads * keys))
        number = 0
        for row in range(0, rows, rows_each):
            for query in range(0, queries, queries_each):
                some, asking = slice(row, min(rows, row + rows_each)), slice(query, min(queries, query + queries_each))
                yield _Piece(number, some, asking, self.block.last_key(some, asking))
                number += 1

    def compute(self, piece: _Piece, query: Tensor, key: Tensor, value: Tensor, *own: Tensor) -> tuple[Tensor, Tensor]:
        """(output (r, C, H, q, V), penalty summed over rows, queries and heads). query (r, H, q, K), key, value (r, G, stop, .).

        own: key and value (r, G, q, .) of the queries themselves, where each sees its own behind the others.
        """
        parts, config = self.parts, self.parts.config
        shared = query.shape[1] // key.shape[1]
        if shared > 1:
            key, value, *own = (t.repeat_interleave(shared, dim=1) for t in (key, value, *own))  # type: ignore[assignment]
        distance, visible = self.block.pairs(piece.rows, piece.queries, piece.stop)
        visible = visible[:, None]
        scores = self._scores(query, key, visible)
        if own:
            own_key = own[0].to(scores.dtype)
            own_scores = (query.to(scores.dtype) * parts.scale * own_key).sum(dim=-1, keepdim=True)
            scores = torch.cat((scores, own_scores), dim=-1)
        biases = []
        if parts.position is not None:
            biases.append(parts.position(distance).to(scores.dtype))
        if parts.time is not None:
            assert self.ages is not None
            ages = self.ages[piece.rows, piece.queries]
            ages = torch.cat((ages[..., : piece.stop], ages[..., -1:]), dim=-1) if own else ages[..., : piece.stop]
            biases.append(parts.time(ages).to(scores.dtype))
        if config.bias_as == "score":
            for bias in biases:
                scores = scores + bias
        weights = normalise(scores, visible, config.normalisation, parts.silu_divisor)
        if self.block.may_be_blind:
            weights = weights * visible
        penalty = scores.new_zeros(())
        if parts.with_penalty:
            counted = self.block.is_counted[piece.rows, None, piece.queries]
            penalty = (penalty_of(weights, config.normalisation) * counted).sum()
        maps = [weights]
        if config.bias_as == "channel":
            maps += [(bias * visible).expand_as(weights) for bias in biases]
        if parts.threshold:
            generator = torch.Generator(query.device).manual_seed(self.seed + piece.number)
            maps = [drop(part, parts.threshold, generator) for part in maps]
        return torch.stack([_seen(part.to(value.dtype), value, *own[1:]) for part in maps], dim=1), penalty

    def _scores(self, query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
        """(r, H, q, k) in float32 at least. A product of bfloat16 would round scores before biases and exponentials."""
        unit, exact = self.parts.unit, torch.promote_types(query.dtype, torch.float32)
        if unit is None:
            return (query.to(exact) * self.parts.scale) @ key.to(exact).transpose(-1, -2)
        scores: Tensor = unit(query, key, visible)
        return scores.to(exact)


def _seen(weights: Tensor, value: Tensor, own: Tensor | None = None) -> Tensor:
    """(r, H, q, V): values by their weights; the last weight of each query is for its own value, if it has one."""
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
    """(output (R, C, H, Q, V), penalty scalar) for query (R, H, Q, K), key (R, G, K, K), value (R, G, K, V).

    own: key (R, G, Q, K) and value (R, G, Q, V) of the queries, where each sees itself too. keep: whether backward finds what
    forward computed; else it is computed again. A piece that is but a part of its rows' queries is always computed again.
    """
    # A draw of the global generator, so that dropout stays a function of its seed; the pieces' own generators repeat in backward.
    seed = int(torch.randint(2**62, ()).item()) if parts.threshold else 0
    work = _Work(block, ages, parts, seed)
    if keep:
        pieces = list(work.pieces(query.shape[1], query.device))
        if all(piece.queries == slice(0, query.shape[2]) for piece in pieces):
            return _kept(work, pieces, query, key, value, *own)
    output, penalty = _InPieces.apply(work, 3 + len(own), query, key, value, *own, *parts.parameters)
    return output, penalty


def are_kept(blocks: Iterable[PaddedBlock], num_heads: int, parts: AttentionTerms) -> bool:
    """Whether backward should find what a unit computed for all of these blocks."""
    if parts.unit is None:
        return False
    scores = sum(block.query_gather.numel() * block.key_gather.shape[1] for block in blocks)
    return scores * num_heads * parts.unit.numbers_per_score <= UNIT_KEPT


def _kept(work: _Work, pieces: list[_Piece], *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Piece by piece, with a graph; pieces are whole rows."""
    sizes = [piece.rows.stop - piece.rows.start for piece in pieces]
    cut = zip(pieces, *(tensor.split(sizes) for tensor in tensors), strict=True)
    with torch.autocast(tensors[0].device.type, enabled=False):
        found = [
            work.compute(piece, query, key[:, :, : piece.stop], value[:, :, : piece.stop], *own)
            for piece, query, key, value, *own in cut
        ]
    return torch.cat([output for output, _ in found]), torch.stack([penalty for _, penalty in found]).sum()


class _InPieces(torch.autograd.Function):
    """num_cut: how many of the tensors are cut into pieces; those behind them are learned, and whole in every piece."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, work: _Work, num_cut: int, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        query, _, value, *_ = tensors
        rows, heads, queries = query.shape[:3]
        output = value.new_zeros((rows, work.parts.config.num_channels, heads, queries, value.shape[-1]))
        penalties = [output.new_zeros((), dtype=torch.float32)]
        with torch.autocast(query.device.type, enabled=False):
            for piece in work.pieces(heads, query.device):
                part, penalty = work.compute(piece, *_sliced(piece, *tensors[:num_cut]))
                output[piece.rows, :, :, piece.queries] = part
                penalties.append(penalty.float())
        ctx.save_for_backward(*tensors)
        ctx.work, ctx.num_cut = work, num_cut  # type: ignore[attr-defined]
        return output, torch.stack(penalties).sum()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        tensors, num_cut = ctx.saved_tensors, ctx.num_cut  # type: ignore[attr-defined]
        work: _Work = ctx.work  # type: ignore[attr-defined]
        query, learned = tensors[0], tensors[num_cut:]
        totals = [torch.zeros_like(tensor) for tensor in tensors]
        with torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
            for piece in work.pieces(query.shape[1], query.device):
                leaves = [part.detach().requires_grad_() for part in _sliced(piece, *tensors[:num_cut])]
                part, penalty = work.compute(piece, *leaves)
                wanted, given = [part], [grad_outputs[0][piece.rows, :, :, piece.queries]]
                if work.parts.with_penalty:
                    wanted, given = [*wanted, penalty], [*given, grad_outputs[1].to(penalty.dtype)]
                gradients = torch.autograd.grad(wanted, [*leaves, *learned], given, allow_unused=True)
                for total, gradient in zip(
                    [*_sliced(piece, *totals[:num_cut]), *totals[num_cut:]], gradients, strict=True
                ):
                    if gradient is not None:
                        total += gradient
        return None, None, *totals


def _sliced(piece: _Piece, query: Tensor, key: Tensor, value: Tensor, *own: Tensor) -> list[Tensor]:
    keys = (piece.rows, slice(None), slice(None, piece.stop))
    queries = (piece.rows, slice(None), piece.queries)
    return [query[queries], key[keys], value[keys], *(tensor[queries] for tensor in own)]
