"""Checks of encoders that encode the newest events of a history to the end: truncation and token merge.

Each of them is compared with a reference that encodes one history after another.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.attention.blocks import AttentionContext
from models.attention.traceable import traceable_layout
from models.batches.history_batch import HistoryBatch, build_batch
from models.batches.jagged import JaggedLayout, layout_of
from models.batches.micro_batches import parts_of, with_cuts
from models.config import NextItemConfig
from models.encoders.encoder import Encoder
from models.features.catalogue import Catalogue
from models.next_item.model import NextItemModel
from tests.models.attention.forms import context_of
from tests.models.encoders.test_encoder import WIDTH, make_encoder
from tests.support.random_models import looked_up, random_model

LENGTHS = [7, 0, 1, 20, 3, 4, 3]

Reference = Callable[[Encoder, Tensor, AttentionContext], Tensor]


def events(num_events: int) -> Tensor:
    return torch.randn(num_events, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def kept_places(lengths: list[int], number: int) -> list[int]:
    """Return the packed places of the newest events of each history."""
    ends = np.cumsum(lengths)
    return [place for end, length in zip(ends, lengths, strict=True) for place in range(end - min(length, number), end)]


def alone(context: AttentionContext, first: int, end: int) -> AttentionContext:
    """Return the context of some events of one history."""
    assert context.times is not None
    assert context.request_times is not None
    layout = layout_of(np.asarray([0, end - first]))
    return AttentionContext(layout, context.times[first:end], context.request_times[first:end])


def batch_of(lengths: list[int], newest: int | None) -> HistoryBatch:
    """Return a batch in which the newest events of each history have targets; None: all events."""
    random = np.random.default_rng(3)
    items, targets = random.integers(1, 30, (2, sum(lengths)))
    if newest is not None:
        older = np.setdiff1d(np.arange(sum(lengths)), kept_places(lengths, newest))
        targets[older] = 0
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    rows = np.arange(len(lengths))
    return build_batch(rows, offsets, items, targets, np.zeros(0, np.int64), Catalogue(30, 30), True)


def model_of(**encoder: Any) -> NextItemModel:
    config = NextItemConfig.model_validate({"max_history": 24, "encoder": {"dropout": 0.0, **encoder}})
    return random_model(config, 30, WIDTH)


def inputs_of_blocks(encoder: Encoder, x: Tensor) -> Tensor:
    """Return what the first block, or the merge, receives of one history."""
    config = encoder.config
    if config.scale_inputs:
        x = x * WIDTH**0.5
    if encoder.positions is not None:
        from_newest = encoder.max_history - len(x) if config.positions_from == "newest" else 0
        x = x + encoder.positions(torch.arange(len(x)) + from_newest)
    return x if encoder.input_norm is None else encoder.input_norm(x)


def check_equal_to(reference: Reference, encoder: Encoder, lengths: list[int]) -> None:
    """Check values, and gradients of inputs and of every weight."""
    context = context_of(lengths)
    results = []
    for encode in (lambda x: encoder(x, context)[0], lambda x: reference(encoder, x, context)):
        x = events(sum(lengths)).requires_grad_()
        encoder.zero_grad()
        output = encode(x)
        output.pow(3).sum().backward()
        leaves = [x, *encoder.parameters()]
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone() for leaf in leaves]
        results.append((output.detach(), *gradients))
    assert results[0][0].shape[0] == len(kept_places(lengths, encoder.config.num_newest or 0))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def check_last_events(encoder: Encoder) -> None:
    """Check that the last events alone are encoded as among all."""
    context = context_of(LENGTHS)
    kept = kept_places(LENGTHS, encoder.config.num_newest or 0)
    lasts = [kept.index(end - 1) for end, length in zip(np.cumsum(LENGTHS), LENGTHS, strict=True) if length]
    expected = encoder(events(sum(LENGTHS)), context)[0][lasts]
    actual = encoder(events(sum(LENGTHS)), context, only_last=True)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def check_traceable(encoder: Encoder, last_rows: Callable[[JaggedLayout], Tensor]) -> None:
    """Check that a traceable layout gives the same last events, which are in the given rows of the output."""
    lengths = [length for length in LENGTHS if length]
    context = context_of(lengths)
    layout = traceable_layout(context.layout.offsets, sum(lengths), torch.arange(max(lengths) + 2))
    traced = AttentionContext(layout, context.times, context.request_times)
    output = encoder(events(sum(lengths)), traced)[0][last_rows(layout)]
    expected = encoder(events(sum(lengths)), context, only_last=True)[0]
    torch.testing.assert_close(output, expected, rtol=1e-11, atol=1e-11)


def check_recomputation(settings: dict[str, Any]) -> None:
    """Check that recomputation changes no bit of outputs and gradients."""
    results = []
    for recompute in (False, True):
        encoder = make_encoder({**settings, "recompute": recompute, "dropout": 0.3}).double().train()
        x = events(sum(LENGTHS)).requires_grad_()
        torch.manual_seed(4)
        output, penalty = encoder(x, context_of(LENGTHS))
        (output.pow(3).sum() + (0.0 if penalty is None else penalty)).backward()
        results.append((output.detach(), x.grad, *(p.grad for p in encoder.parameters() if p.grad is not None)))
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)


def check_loss(reference: Reference, settings: dict[str, Any], lengths: list[int], kept: int) -> None:
    """Check that the loss is that of the newest events, also in micro-batches."""
    model, batch = model_of(**settings), batch_of(lengths, kept)
    rows = looked_up(model, batch)
    assert batch.num_targets == len(kept_places(lengths, kept))
    users = reference(model.encoder, rows["item"][batch.history_index], context_of(lengths))
    logits = users @ rows["item"][1:].T
    expected = torch.nn.functional.cross_entropy(logits, batch.target_ids - 1, reduction="sum")
    torch.testing.assert_close(model.loss(rows, batch).double(), expected, rtol=1e-6, atol=1e-6)
    pieces = [model.loss(rows, part) for part in parts_of(with_cuts(batch, 9))]
    torch.testing.assert_close(torch.stack(pieces).sum().double(), expected, rtol=1e-6, atol=1e-6)
