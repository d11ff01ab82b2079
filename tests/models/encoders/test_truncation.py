"""Truncated encoders against a plain one: history after history, deeper blocks on a slice of the newest events."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.attention.blocks import AttentionContext
from models.attention.traceable import last_rows, traceable_layout
from models.batches.history_batch import HistoryBatch, build_batch
from models.batches.jagged import layout_of
from models.batches.micro_batches import parts_of, with_cuts
from models.batches.transfer import to_device
from models.config import NextItemConfig
from models.encoders.config import EncoderConfig
from models.encoders.encoder import Encoder
from models.features.catalogue import Catalogue
from models.next_item.model import NextItemModel
from models.ranking.config import RankingConfig
from tests.models.attention.forms import context_of
from tests.models.encoders.test_encoder import CASES, CAUSAL, WIDTH, make_encoder
from tests.support.random_models import looked_up, random_model

LENGTHS = [7, 0, 1, 20, 3, 4, 3]
KEPT = 4
TRUNCATED = {"num_blocks": 3, "truncate_after": 1, "truncate_to": KEPT}
MORE: dict[str, dict[str, Any]] = {
    "semi-local": {"attention": {"window": 3, "num_global": 2, "bias": "both"}},
    "two whole blocks": {"truncate_after": 2},
    "one event": {"truncate_to": 1},
    "penalty, several heads": {"attention": {"num_heads": 4, "num_key_value_heads": 2, "penalty": 0.1, "bias": "both"}},
    "a deep block left out": {"heads_by_block": [2, 0, 1]},
    "all deep blocks left out": {"heads_by_block": [2, 0, 0]},
    "all blocks left out": {"heads_by_block": [0, 0, 0]},
}
FORMS = {**{case: CASES[case] for case in CAUSAL}, **MORE}


def encoder_of(form: str) -> Encoder:
    return make_encoder({**TRUNCATED, **FORMS[form]}).double().eval()


def events(num_events: int) -> Tensor:
    return torch.randn(num_events, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def kept_places(lengths: list[int], number: int) -> list[int]:
    """Return the packed places of the newest events of each history."""
    ends = np.cumsum(lengths)
    return [place for end, length in zip(ends, lengths, strict=True) for place in range(end - min(length, number), end)]


def encode_reference(encoder: Encoder, x_ND: Tensor, context: AttentionContext) -> Tensor:
    """Encode one history after another, in the order of the definition."""
    config = encoder.config
    assert config.truncate_to is not None
    outputs = [x_ND[:0]]
    for start, end in zip(context.layout.offsets[:-1].tolist(), context.layout.offsets[1:].tolist(), strict=True):
        if start == end:
            continue
        x, first = x_ND[start:end], start
        if config.scale_inputs:
            x = x * WIDTH**0.5
        if encoder.positions is not None:
            place = torch.arange(end - start) + (
                encoder.max_history - (end - start) if config.positions_from == "newest" else 0
            )
            x = x + encoder.positions(place)
        if encoder.input_norm is not None:
            x = encoder.input_norm(x)
        for depth in range(1, config.num_blocks + 1):
            if depth == config.truncate_after + 1:  # type: ignore[operator]
                first = max(start, end - config.truncate_to)
                x = x[first - start :]
            if depth in encoder.depths:
                x, _ = encoder.blocks[encoder.depths.index(depth)](x, alone(context, first, end))
        x = encoder.final_norm(x)
        if encoder.pooling is not None:
            x = encoder.pooling(x, alone(context, first, end))
        if encoder.output_head is not None:
            x = encoder.output_head(x)
        outputs.append(encoder.user_tower(x))
    return torch.cat(outputs)


def alone(context: AttentionContext, first: int, end: int) -> AttentionContext:
    """Return the context of some events of one history."""
    assert context.times is not None
    assert context.request_times is not None
    layout = layout_of(np.asarray([0, end - first]))
    return AttentionContext(layout, context.times[first:end], context.request_times[first:end])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [LENGTHS, [3, 2, 4], [9], [0, 0]], ids=str)
def test_deeper_blocks_receive_the_newest_events(form: str, lengths: list[int]) -> None:
    """In values, and in gradients of inputs and of every weight."""
    encoder, context = encoder_of(form), context_of(lengths)
    results = []
    for encode in (lambda x: encoder(x, context)[0], lambda x: encode_reference(encoder, x, context)):
        x = events(sum(lengths)).requires_grad_()
        encoder.zero_grad()
        output = encode(x)
        output.pow(3).sum().backward()
        leaves = [x, *encoder.parameters()]
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone() for leaf in leaves]
        results.append((output.detach(), *gradients))
    assert results[0][0].shape[0] == len(kept_places(lengths, encoder.config.truncate_to or 0))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_the_last_events_are_encoded_as_among_all(form: str) -> None:
    encoder, context = encoder_of(form), context_of(LENGTHS)
    kept = kept_places(LENGTHS, encoder.config.truncate_to or 0)
    lasts = [kept.index(end - 1) for end, length in zip(np.cumsum(LENGTHS), LENGTHS, strict=True) if length]
    expected = encoder(events(sum(LENGTHS)), context)[0][lasts]
    actual = encoder(events(sum(LENGTHS)), context, only_last=True)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_a_traceable_layout_gives_the_same_last_events(form: str) -> None:
    """Also for histories that are shorter than the kept events, where padding follows the last one."""
    lengths = [length for length in LENGTHS if length]
    encoder, context = encoder_of(form), context_of(lengths)
    layout = traceable_layout(context.layout.offsets, sum(lengths), torch.arange(max(lengths) + 2))
    traced = AttentionContext(layout, context.times, context.request_times)
    output = encoder(events(sum(lengths)), traced)[0][last_rows(layout, encoder.config.truncate_to)]
    expected = encoder(events(sum(lengths)), context, only_last=True)[0]
    torch.testing.assert_close(output, expected, rtol=1e-11, atol=1e-11)


def test_older_events_reach_an_output_through_the_whole_blocks_alone() -> None:
    """With two blocks, the one below the cut passes them on to the kept events; a cut after none of them is not possible."""
    encoder, context = encoder_of("sasrec"), context_of([20])
    x = events(20).requires_grad_()
    encoder(x, context)[0][-1].sum().backward()
    assert (x.grad.abs().sum(dim=1) > 0).all()
    with torch.no_grad():
        encoder.blocks[0].attention.attention_output.weight.zero_()
    x = events(20).requires_grad_()
    encoder(x, context)[0][-1].sum().backward()
    assert (x.grad.abs().sum(dim=1) > 0).tolist() == [False] * 16 + [True] * KEPT


@pytest.mark.parametrize("form", ["sasrec", "hstu", "penalty, several heads"])
def test_recomputation_changes_nothing(form: str) -> None:
    results = []
    for recompute in (False, True):
        encoder = make_encoder({**TRUNCATED, **FORMS[form], "recompute": recompute, "dropout": 0.3}).double().train()
        x = events(sum(LENGTHS)).requires_grad_()
        torch.manual_seed(4)
        output, penalty = encoder(x, context_of(LENGTHS))
        (output.pow(3).sum() + (0.0 if penalty is None else penalty)).backward()
        results.append((output.detach(), x.grad, *(p.grad for p in encoder.parameters() if p.grad is not None)))
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)


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


@pytest.mark.parametrize("lengths", [LENGTHS, [3, 2, 0, 4]], ids=str)
def test_the_loss_is_that_of_the_newest_events(lengths: list[int]) -> None:
    model, batch = model_of(**TRUNCATED), batch_of(lengths, KEPT)
    rows = looked_up(model, batch)
    assert batch.num_targets == len(kept_places(lengths, KEPT))
    users = encode_reference(model.encoder, rows["item"][batch.history_index], context_of(lengths))
    logits = users @ rows["item"][1:].T
    expected = torch.nn.functional.cross_entropy(logits, batch.target_ids - 1, reduction="sum")
    torch.testing.assert_close(model.loss(rows, batch).double(), expected, rtol=1e-6, atol=1e-6)
    cut = with_cuts(batch, 9)
    pieces = [model.loss(rows, part) for part in parts_of(cut)]
    torch.testing.assert_close(torch.stack(pieces).sum().double(), expected, rtol=1e-6, atol=1e-6)


def test_targets_of_older_events_are_refused() -> None:
    model, batch = model_of(**TRUNCATED), batch_of(LENGTHS, None)
    with pytest.raises(AssertionError, match="older events are no targets"):
        model.loss(looked_up(model, batch), batch)


def test_the_layout_of_the_newest_events_moves_with_that_of_all() -> None:
    layout = layout_of(np.concatenate(([0], np.cumsum(LENGTHS))) + 5)  # offsets of a part of a batch
    newest = layout.newest(KEPT)
    assert newest.index.tolist() == kept_places(LENGTHS, KEPT)
    assert newest.layout.offsets.diff().tolist() == [min(length, KEPT) for length in LENGTHS]
    assert layout.newest(KEPT) is newest
    moved = to_device(layout, torch.device("meta"))
    assert moved.newest(KEPT).layout.positions.is_meta


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"num_blocks": 3, "truncate_after": 1}, "truncate_to is not set"),
        ({"num_blocks": 3, "truncate_to": 5}, "truncate_after is not set"),
        ({"num_blocks": 2, "truncate_after": 2, "truncate_to": 5}, "leaves no deeper block of num_blocks = 2"),
        ({"kind": "bert4rec", "truncate_after": 1, "truncate_to": 5}, 'needs attention.mask = "causal"'),
    ],
    ids=["no length", "no block", "no deeper block", "bidirectional"],
)
def test_truncation_that_cannot_be_is_refused(encoder: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig.model_validate(encoder)


def test_truncation_to_all_events_and_of_rankers_is_refused() -> None:
    with pytest.raises(ValueError, match="truncate_to = 24 must be below max_history = 24"):
        NextItemConfig.model_validate({"max_history": 24, "encoder": {**TRUNCATED, "truncate_to": 24}})
    with pytest.raises(ValueError, match=r"encoder\.truncate_after keeps the newest events of a history"):
        RankingConfig.model_validate({"kind": "hstu", "encoder": TRUNCATED})
