"""Parity: a pruned encoder equals the whole one in which the pruned heads and blocks contribute nothing."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.attention.blocks import AttentionContext
from models.attention.layer import Attention
from models.batches.jagged import layout_of
from models.encoders.block import EncoderBlock
from models.encoders.config import EncoderConfig
from models.encoders.encoder import Encoder
from trainer.pruning.choice import Kept, pruned_encoder
from trainer.pruning.weights import pruned_tensors

WIDTH, MAX_HISTORY = 32, 12
LENGTHS = [12, 7, 1, 5]
HEADS: dict[str, Any] = {"num_heads": 4}
BIASES = {"bias": "both", "position_bias": "functional", "time_bias": "functional"}
FORMS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind, "attention": HEADS} for kind in ("sasrec", "bert4rec", "ligr", "two_tower")},
    **{kind: {"kind": kind, "attention": {**HEADS, "bias": "both"}} for kind in ("hstu", "fuxi_alpha")},
    "norm of values": {"attention": {**HEADS, "output_norm": "layer_norm", "gate": True}},
    "shared keys": {"kind": "hstu", "attention": {**HEADS, "num_key_value_heads": 2}},
    "differential": {"attention": {**HEADS, "differential": True, **BIASES, "temperature": "learned"}},
    "rotary": {"kind": "ligr", "positions": "rotary", "attention": {**HEADS, "normalisation": "entmax15"}},
    "window": {"attention": {**HEADS, "window": 3, "num_global": 1, "bias": "position"}},
    "truncated": {"kind": "hstu", "attention": {**HEADS, "bias": "both"}, "truncate_after": 1, "truncate_to": 4},
    "merged": {"attention": {**HEADS, "bias": "both"}, "merge_size": 3, "merge_recent": 4, "merge_form": "transformer"},
    "norms of candidates": {"kind": "hstu", "attention": {**HEADS, "bias": "both"}, "candidate_norms": True},
}
# Of three blocks, some heads of the first and the last are pruned. Heads 0 and 1 share keys in one form.
SOME_HEADS: Kept = {1: [2, 3], 2: [0, 1, 2, 3], 3: [0, 1]}
A_BLOCK: Kept = {1: [0, 1, 2, 3], 3: [0, 1, 2, 3]}
BOTH: Kept = {2: [0, 1], 3: [2, 3]}


def encoder_of(given: dict[str, Any]) -> Encoder:
    """Return an encoder with random weights everywhere, in double precision."""
    config = EncoderConfig.model_validate({"num_blocks": 3, "dropout": 0.0, **given})
    encoder = Encoder(WIDTH, MAX_HISTORY, config).double().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return encoder


def pruned(encoder: Encoder, kept: Kept) -> Encoder:
    """Return the pruned encoder."""
    values = encoder.config.model_dump() | {"heads_by_block": pruned_encoder(encoder.config, kept)}
    smaller = Encoder(WIDTH, MAX_HISTORY, EncoderConfig.model_validate(values)).double().eval()
    weights = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    part = pruned_tensors(weights, encoder.config, WIDTH, kept)
    smaller.load_state_dict({name.removeprefix("encoder."): value for name, value in part.items()})
    return smaller


def silenced(encoder: Encoder, kept: Kept) -> Encoder:
    """Return the whole encoder without the contributions of pruned parts, by its weights and without code of pruning.

    Values of a pruned head are zero, and the output projection ignores it. A pruned block returns its input.
    """
    whole = copy.deepcopy(encoder)
    for number, block in enumerate(whole.blocks, start=1):
        assert isinstance(block, EncoderBlock)
        if number not in kept:
            block.register_forward_hook(lambda block, given, output: (given[1].output_rows(given[0]), None))
            continue
        for head in set(range(4)) - set(kept[number]):
            silence_head(block.attention, head)
    return whole


@torch.no_grad()
def silence_head(layer: Attention, head: int) -> None:
    width = layer.head_width
    shared = layer.config.num_heads // layer.config.key_value_heads
    queries, keys, *_ = layer.sizes
    start = queries + keys + (head // shared) * width
    layer.query_key_value.weight[start : start + width] = 0.0
    columns = layer.attention_output.weight.view(WIDTH, layer.config.num_channels, WIDTH)
    columns[:, :, head * width : (head + 1) * width] = 0.0


def outputs(encoder: Encoder) -> list[Tensor]:
    """Return the encoded events, and the last of each history by the path of evaluations."""
    offsets = np.concatenate(([0], np.cumsum(LENGTHS)))
    generator = torch.Generator().manual_seed(3)
    events = torch.randn((int(offsets[-1]), WIDTH), generator=generator, dtype=torch.float64)
    times = torch.arange(events.shape[0]) * 5000
    with torch.no_grad():
        return [
            encoder(events, AttentionContext(layout_of(offsets), times, times + 60), only_last)[0]
            for only_last in (False, True)
        ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [SOME_HEADS, A_BLOCK, BOTH], ids=["heads", "block", "both"])
def test_a_pruned_encoder_equals_the_whole_one_without_these_contributions(form: str, kept: Kept) -> None:
    encoder = encoder_of(FORMS[form])
    whole = outputs(encoder)
    expected = outputs(silenced(encoder, kept))
    smaller = pruned(encoder, kept)
    for got, wanted, before in zip(outputs(smaller), expected, whole, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0.0, atol=1e-10)
        assert not torch.allclose(wanted, before, atol=1e-3), "the pruned parts contribute to the outputs"
    assert count(smaller) < count(encoder)


def test_a_pruned_encoder_can_be_pruned_again() -> None:
    encoder = encoder_of(FORMS["fuxi_alpha"])
    once = pruned(encoder, {1: [0, 2, 3], 3: [0, 1, 3]})
    twice = pruned(once, {1: [1, 2], 3: [2]})
    for got, wanted in zip(outputs(twice), outputs(silenced(encoder, {1: [2, 3], 3: [3]})), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0.0, atol=1e-10)


def test_slots_of_the_optimizer_are_pruned_like_their_weights() -> None:
    encoder = encoder_of(FORMS["sasrec"])
    name = "dense.encoder.blocks.2.attention.query_key_value.weight"
    weight = encoder.blocks[2].attention.query_key_value.weight.detach()
    tensors = {name: weight, f"{name}.exp_avg": 2.0 * weight, f"{name}.step": torch.tensor(5.0), f"ema.x{name}": weight}
    part = pruned_tensors(tensors, encoder.config, WIDTH, BOTH)
    new = "dense.encoder.blocks.1.attention.query_key_value.weight"
    assert part[new].shape == (3 * WIDTH // 2, WIDTH)
    torch.testing.assert_close(part[f"{new}.exp_avg"], 2.0 * part[new])
    assert part[f"{new}.step"] == 5.0
    torch.testing.assert_close(part[f"ema.x{new}"], part[new])


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
