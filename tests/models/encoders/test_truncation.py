"""Truncated encoders against a plain one: history after history, deeper blocks on a slice of the newest events."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.attention.blocks import AttentionContext
from models.attention.traceable import last_rows
from models.batches.jagged import layout_of
from models.batches.transfer import to_device
from models.config import NextItemConfig
from models.encoders.config import EncoderConfig
from models.encoders.encoder import Encoder
from models.ranking.config import RankingConfig
from tests.models.attention.forms import context_of
from tests.models.encoders.newest_events import (
    LENGTHS,
    alone,
    batch_of,
    check_equal_to,
    check_last_events,
    check_loss,
    check_recomputation,
    check_traceable,
    events,
    inputs_of_blocks,
    kept_places,
    model_of,
)
from tests.models.encoders.test_encoder import CASES, CAUSAL, make_encoder
from tests.support.random_models import looked_up

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


def encode_reference(encoder: Encoder, x_ND: Tensor, context: AttentionContext) -> Tensor:
    """Encode one history after another, in the order of the definition."""
    config = encoder.config
    assert config.truncate_to is not None
    outputs = [x_ND[:0]]
    for start, end in zip(context.layout.offsets[:-1].tolist(), context.layout.offsets[1:].tolist(), strict=True):
        if start == end:
            continue
        x, first = inputs_of_blocks(encoder, x_ND[start:end]), start
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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [LENGTHS, [3, 2, 4], [9], [0, 0]], ids=str)
def test_deeper_blocks_receive_the_newest_events(form: str, lengths: list[int]) -> None:
    """In values, and in gradients of inputs and of every weight."""
    check_equal_to(encode_reference, encoder_of(form), lengths)


@pytest.mark.parametrize("form", FORMS)
def test_the_last_events_are_encoded_as_among_all(form: str) -> None:
    check_last_events(encoder_of(form))


@pytest.mark.parametrize("form", FORMS)
def test_a_traceable_layout_gives_the_same_last_events(form: str) -> None:
    """Also for histories that are shorter than the kept events, where padding follows the last one."""
    encoder = encoder_of(form)
    check_traceable(encoder, lambda layout: last_rows(layout, encoder.config.truncate_to))


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
    check_recomputation({**TRUNCATED, **FORMS[form]})


@pytest.mark.parametrize("lengths", [LENGTHS, [3, 2, 0, 4]], ids=str)
def test_the_loss_is_that_of_the_newest_events(lengths: list[int]) -> None:
    check_loss(encode_reference, TRUNCATED, lengths, KEPT)


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
