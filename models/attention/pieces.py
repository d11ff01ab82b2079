"""Attention of any form, a cache-sized piece of scores at a time, computed again in the backward pass instead of kept.

Scores and weights of a whole block do not fit in a cache, and written to memory they would cost more than computing them twice:
so forward keeps queries, keys and values only, and backward goes through the same pieces. Memory is that of one piece.

Shapes: R rows, Q queries and K keys of a row, H heads of queries, G heads of keys and values, C channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.attention.blocks import Block
from models.attention.normalise import normalise, penalty_of
from models.attention.parts import Parts
from models.dropout import drop

PIECE_SCORES = 1 << 18  # scores held at a time on a CPU: with what is made of them, about its second-level cache
GPU_PIECE_SCORES = 1 << 26


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

    block: Block
    ages: Tensor | None
    parts: Parts
    seed: int

    def pieces(self, num_heads: int, device: torch.device) -> Iterator[_Piece]:
        rows, queries = self.block.query_gather.shape
        keys = self.block.key_gather.shape[1]
        size = PIECE_SCORES if device.type == "cpu" else GPU_PIECE_SCORES
        rows_each = max(1, size // max(1, num_heads * queries * keys))
        queries_each = queries if rows_each > 1 else max(16, size // max(1, num_heads * keys))
        number = 0
        for row in range(0, rows, rows_each):
            for query in range(0, queries, queries_each):
                last = min(queries, query + queries_each)
                stop = last if self.block.triangular else keys
                yield _Piece(number, slice(row, min(rows, row + rows_each)), slice(query, last), stop)
                number += 1

    def compute(self, piece: _Piece, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(output (r, C, H, q, V), penalty summed over rows, queries and heads). query (r, H, q, K), key, value (r, G, stop, .)."""
        parts, config = self.parts, self.parts.config
        shared = query.shape[1] // key.shape[1]
        if shared > 1:
            key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
        visible = self._cut(self.block.visible, piece)[:, None]
        scores = (query * parts.scale) @ key.transpose(-1, -2)
        scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
        biases = []
        if parts.position is not None:
            biases.append(parts.position(self._cut(self.block.distance, piece)).to(scores.dtype))
        if parts.time is not None:
            assert self.ages is not None
            biases.append(parts.time(self._cut(self.ages, piece)).to(scores.dtype))
        if config.bias_as == "score":
            for bias in biases:
                scores = scores + bias
        weights = normalise(scores, visible, config.normalisation, parts.silu_divisor)
        penalty = scores.new_zeros(())
        if parts.with_penalty:
            real = self.block.is_query[piece.rows, None, piece.queries]
            penalty = (penalty_of(weights, config.normalisation) * real).sum()
        maps = [weights]
        if config.bias_as == "channel":
            maps += [(bias * visible).expand_as(weights) for bias in biases]
        if parts.threshold:
            generator = torch.Generator(query.device).manual_seed(self.seed + piece.number)
            maps = [drop(part, parts.threshold, generator) for part in maps]
        return torch.stack([part.to(value.dtype) @ value for part in maps], dim=1), penalty

    def _cut(self, pairs: Tensor, piece: _Piece) -> Tensor:
        rows = piece.rows if pairs.shape[0] > 1 else slice(None)
        return pairs[rows, piece.queries, : piece.stop]


def attend_in_pieces(
    query: Tensor, key: Tensor, value: Tensor, block: Block, ages: Tensor | None, parts: Parts
) -> tuple[Tensor, Tensor]:
    """(output (R, C, H, Q, V), penalty scalar) for query (R, H, Q, K), key (R, G, K, K), value (R, G, K, V)."""
    # A draw of the global generator, so that dropout stays a function of its seed; the pieces' own generators repeat in backward.
    seed = int(torch.randint(2**62, ()).item()) if parts.threshold else 0
    work = _Work(block, ages, parts, seed)
    output, penalty = _InPieces.apply(work, query, key, value, *parts.parameters)
    return output, penalty


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        work: _Work,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *learned: Tensor,
    ) -> tuple[Tensor, Tensor]:
        rows, heads, queries = query.shape[:3]
        output = value.new_zeros((rows, work.parts.config.num_channels, heads, queries, value.shape[-1]))
        penalties = [output.new_zeros((), dtype=torch.float32)]
        with torch.autocast(query.device.type, enabled=False):
            for piece in work.pieces(heads, query.device):
                part, penalty = work.compute(piece, *_sliced(piece, query, key, value))
                output[piece.rows, :, :, piece.queries] = part
                penalties.append(penalty.float())
        ctx.save_for_backward(query, key, value, *learned)
        ctx.work = work  # type: ignore[attr-defined]
        return output, torch.stack(penalties).sum()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *learned = ctx.saved_tensors  # type: ignore[attr-defined]
        work: _Work = ctx.work  # type: ignore[attr-defined]
        totals = [torch.zeros_like(tensor) for tensor in (query, key, value, *learned)]
        with torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
            for piece in work.pieces(query.shape[1], query.device):
                leaves = [part.detach().requires_grad_() for part in _sliced(piece, query, key, value)]
                part, penalty = work.compute(piece, *leaves)
                wanted, given = [part], [grad_outputs[0][piece.rows, :, :, piece.queries]]
                if work.parts.with_penalty:
                    wanted, given = [*wanted, penalty], [*given, grad_outputs[1].to(penalty.dtype)]
                gradients = torch.autograd.grad(wanted, [*leaves, *learned], given, allow_unused=True)
                for total, gradient in zip([*_sliced(piece, *totals[:3]), *totals[3:]], gradients, strict=True):
                    if gradient is not None:
                        total += gradient
        return None, *totals


def _sliced(piece: _Piece, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    keys = (piece.rows, slice(None), slice(None, piece.stop))
    return query[piece.rows, :, piece.queries], key[keys], value[keys]
