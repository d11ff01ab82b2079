"""Every encoder: as published on padded blocks, blind to the future, learning when deep, the same with activations recomputed."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.attention.blocks import AttentionContext
from models.batches.jagged import layout_of
from models.encoders.config import PRESETS, EncoderConfig
from models.encoders.encoder import Encoder
from tests.models.encoders.published import padded_forward

WIDTH, MAX_HISTORY = 8, 24
LENGTHS = [7, 0, 1, 20, 3, 3]
KINDS = sorted(PRESETS)
# Compositions that no paper has published, so that no combination of parts is only for show.
COMPOSED = {
    "sasrec, rotary, shared heads": {"positions": "rotary", "attention": {"num_heads": 4, "num_key_value_heads": 2}},
    "sasrec, learned temperature": {"attention": {"temperature": "learned", "penalty": 0.01}},
    "sasrec, differential": {"attention": {"differential": True}},
    "sasrec, sparsemax and post-norm": {"norm_place": "post", "attention": {"normalisation": "sparsemax"}},
    "ligr, entmax15, both biases": {"kind": "ligr", "attention": {"normalisation": "entmax15", "bias": "both"}},
    "ligr, differential, window": {"kind": "ligr", "attention": {"differential": True, "window": 5, "num_global": 1}},
    "ligr, gate, rms": {"kind": "ligr", "attention": {"gate": True, "output_norm": "rms_norm"}},
    "hstu, window, functional": {
        "kind": "hstu",
        "attention": {"window": 6, "position_bias": "functional", "time_bias": "functional"},
    },
    "hstu, softmax": {"kind": "hstu", "attention": {"normalisation": "softmax"}},
    "fuxi, rotary": {"kind": "fuxi_alpha", "positions": "rotary", "attention": {"bias": "position"}},
    "two_tower, hstu inside": {
        "kind": "two_tower",
        "norm": "rms_norm",
        "attention": {"normalisation": "silu", "gate": True},
    },
    "sasrec, as its code": {
        "positions_from": "newest",
        "scale_inputs": True,
        "feed_forward": "relu",
    },
    "bert4rec, as its code": {"kind": "bert4rec", "input_norm": True, "output_head": "gelu"},
    "bert4rec, bias": {"kind": "bert4rec", "attention": {"bias": "position", "position_bias": "bucketed"}},
}
CASES = {**{kind: {"kind": kind} for kind in KINDS}, **COMPOSED}
CAUSAL = [case for case, settings in CASES.items() if settings.get("kind") != "bert4rec"]


def make_encoder(settings: dict, seed: int = 1, **more) -> Encoder:
    attention = {"num_heads": 2, "dropout": 0.0, **settings.get("attention", {})}
    config = EncoderConfig.model_validate({"dropout": 0.0, **more, **settings, "attention": attention})
    encoder = Encoder(WIDTH, MAX_HISTORY, config)
    encoder.initialize(torch.Generator().manual_seed(seed))
    with torch.no_grad():  # small initial weights would hide attention behind the residual path
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return encoder


def context_of(lengths: list[int], seed: int = 5) -> AttentionContext:
    generator = torch.Generator().manual_seed(seed)
    times = torch.rand(sum(lengths), generator=generator).mul(14).exp().long().cumsum(0)
    return AttentionContext(layout_of(np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)), times, times)


def events(num_events: int, dtype: torch.dtype = torch.float32, seed: int = 2) -> Tensor:
    return torch.randn(num_events, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(
    "settings",
    [
        *({"kind": kind} for kind in KINDS),
        {"kind": "ligr", "scale_inputs": True},
        {"kind": "sasrec", "positions_from": "newest", "feed_forward": "relu", "scale_inputs": True},
        {"kind": "bert4rec", "input_norm": True, "output_head": "gelu"},
    ],
    ids=str,
)
def test_jagged_equals_the_published_encoder_on_padded_blocks(settings):
    """In values, and in gradients of inputs and of every weight."""
    encoder, context = make_encoder(settings).double(), context_of(LENGTHS)
    longest = max(LENGTHS)
    real = torch.arange(longest)[None, :] < torch.tensor(LENGTHS)[:, None]
    padded = torch.randn(len(LENGTHS), longest, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    times = torch.zeros(real.shape, dtype=torch.int64)
    times[real] = context.times
    results = []
    for jagged in (True, False):
        leaf = padded.clone().requires_grad_()
        encoder.zero_grad()
        output = (
            encoder(leaf[real], context)[0]
            if jagged
            else padded_forward(encoder, leaf, torch.tensor(LENGTHS), times)[real]
        )
        output.pow(3).sum().backward()
        gradients = [p.grad.clone() for name, p in encoder.named_parameters() if not name.startswith("item_tower")]
        results.append((output.detach(), leaf.grad, *gradients))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_places_from_the_newest_event_are_those_of_a_history_padded_on_the_left():
    """The newest of every history has the last place, and an older event that is dropped changes no other's place."""
    encoder = make_encoder({"positions_from": "newest", "num_blocks": 0}).eval()
    x, history = events(9), slice(4, 9)
    together, alone = (encoder(x[part], context_of(lengths))[0] for part, lengths in ((slice(9), [9]), (history, [5])))
    assert torch.equal(together[history], alone)
    assert not torch.equal(make_encoder({"num_blocks": 0}).eval()(x, context_of([9]))[0][history], alone)
    used = torch.autograd.grad(encoder(x, context_of([4, 5]))[0].square().sum(), encoder.positions.weight)[0]
    assert used.any(dim=1).tolist() == [False] * (MAX_HISTORY - 5) + [True] * 5


def test_dropout_inside_of_the_feed_forward_part_is_drawn_in_training_alone():
    plain, dropping = (make_encoder({"feed_forward_dropout": share}) for share in (0.0, 0.5))
    x, context = events(sum(LENGTHS)), context_of(LENGTHS)
    expected = plain.eval()(x, context)[0]
    assert torch.equal(dropping.eval()(x, context)[0], expected)
    torch.manual_seed(1)
    first, second = (dropping.train()(x, context)[0] for _ in range(2))
    assert not torch.equal(first, second)
    ours = dropping.blocks[0].feed_forward.train()
    with torch.no_grad():
        mean = torch.stack([ours(x) for _ in range(2000)]).mean(dim=0)
        assert (mean - ours.eval()(x)).abs().max() < 0.15 * ours(x).abs().max()


@pytest.mark.parametrize(
    "setting", [{"input_norm": True}, {"output_head": "gelu"}, {"positions_from": "newest"}], ids=str
)
def test_each_part_of_a_published_encoder_changes_its_output(setting):
    x, context = events(sum(LENGTHS)), context_of(LENGTHS)
    without, with_it = (make_encoder(given).eval()(x, context)[0] for given in ({}, setting))
    assert (without - with_it).abs().max() > 0.01


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"positions": "rotary", "positions_from": "newest"}, 'positions_from = "newest" needs positions = "learned"'),
        ({"kind": "hstu", "feed_forward_dropout": 0.1}, "feed_forward_dropout needs a feed-forward sub-layer"),
    ],
    ids=["places", "dropout"],
)
def test_settings_without_effect_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        EncoderConfig.model_validate(settings)


@pytest.mark.parametrize("case", CAUSAL)
def test_no_output_sees_a_later_event(case):
    encoder, context = make_encoder(CASES[case]).eval(), context_of(LENGTHS)
    x = events(sum(LENGTHS))
    before = encoder(x, context)[0]
    start, end = context.layout.offsets[3:5].tolist()
    for changed in (start + 1, start + 9, end - 1):
        perturbed, times = x.clone(), context.times.clone()
        perturbed[changed:end] += 5.0 * events(end - changed, seed=changed)
        times[changed:end] += 10**6
        after = encoder(perturbed, AttentionContext(context.layout, times, times))[0]
        assert torch.equal(after[:changed], before[:changed])
        assert torch.equal(after[end:], before[end:])
        assert (after[changed:end] != before[changed:end]).any(dim=1).all()


@pytest.mark.parametrize("case", CASES)
def test_the_encoding_of_a_history_does_not_depend_on_its_batch(case):
    encoder, context = make_encoder(CASES[case]).eval(), context_of(LENGTHS)
    x = events(sum(LENGTHS))
    together = encoder(x, context)[0]
    offsets = context.layout.offsets.tolist()
    for number, length in enumerate(LENGTHS):
        mine = slice(offsets[number], offsets[number + 1])
        layout = layout_of(np.asarray([0, length]))
        alone = encoder(x[mine], AttentionContext(layout, context.times[mine], context.times[mine]))[0]
        torch.testing.assert_close(alone, together[mine], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["bert4rec", "two_tower"])
def test_without_positions_a_permuted_history_changes_nothing(case):
    """Without positions BERT4Rec is blind to order; and what two towers pool is, up to the pooled event, a set."""
    settings = {**CASES[case], "positions": "none"}
    if case == "two_tower":
        settings["num_blocks"] = 0
    encoder, context, x = make_encoder(settings).double().eval(), context_of([6]), events(6, torch.float64)
    order = [3, 1, 5, 0, 4, 2]
    straight, permuted = encoder(x, context)[0], encoder(x[order], context)[0]
    if case == "two_tower":
        torch.testing.assert_close(permuted[-1], straight[-1], rtol=1e-10, atol=1e-10)
    else:
        torch.testing.assert_close(permuted, straight[order], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_recomputed_activations_change_nothing(case):
    """Dropout included: the same weights and activations are dropped when a block is computed again."""
    results = []
    for recompute in (False, True):
        settings = {**CASES[case], "recompute": recompute, "dropout": 0.2}
        if "hstu" not in str(settings.get("kind")):
            settings["feed_forward_dropout"] = 0.2
        encoder, context = make_encoder(settings).train(), context_of(LENGTHS)
        x = events(sum(LENGTHS)).requires_grad_()
        torch.manual_seed(7)
        output, penalty = encoder(x, context)
        (output.square().sum() + (0.0 if penalty is None else penalty)).backward()
        used = [p.grad for name, p in encoder.named_parameters() if not name.startswith("item_tower")]
        results.append([output.detach(), x.grad, *used])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_eight_blocks_still_learn(kind):
    """An average over the history finds its favourite item, which is every second one; by chance the loss is log 6 = 1.79.

    The last places are asked for. Then, where outputs are not averages themselves nor post-norm (which is slow to learn when deep),
    the item before, for which attention has to be sharp.
    """
    averaged = _loss_after_training(kind, _favourites)
    assert averaged < 0.5, averaged
    if kind not in ("two_tower", "bert4rec"):
        sharp = _loss_after_training(kind, _previous)
        assert sharp < 0.9, sharp


def _favourites(items: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return items of which half are the history's favourite, and what is asked for at every place."""
    favourite = torch.randint(6, (items.shape[0], 1), generator=generator).expand_as(items)
    return torch.where(torch.rand(items.shape, generator=generator) < 0.5, favourite, items), favourite


def _previous(items: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return items, items.roll(1, dims=1)


def _loss_after_training(kind: str, task) -> float:
    torch.manual_seed(11)
    config = EncoderConfig.model_validate(
        {"kind": kind, "num_blocks": 8, "dropout": 0.0, "attention": {"num_heads": 2, "dropout": 0.0}}
    )
    encoder, readout = Encoder(16, MAX_HISTORY, config), torch.nn.Linear(16, 6)
    encoder.initialize(torch.Generator().manual_seed(1))
    table = torch.nn.Embedding(6, 16)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *table.parameters(), *readout.parameters()], lr=2e-3)
    context, generator, losses = context_of([12] * 16), torch.Generator().manual_seed(2), []
    for _ in range(150):
        items, asked = task(torch.randint(6, (16, 12), generator=generator), generator)
        logits = readout(encoder(table(items.reshape(-1)), context)[0]).view(16, 12, 6)
        loss = F.cross_entropy(logits[:, 8:].reshape(-1, 6), asked[:, 8:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses[-10:]))


def test_a_kind_is_where_the_other_settings_start_from():
    hstu = EncoderConfig.model_validate({"kind": "hstu", "attention": {"bias": "position"}})
    assert (hstu.attention.normalisation, hstu.attention.bias, hstu.attention.gate) == ("silu", "position", True)
    assert EncoderConfig.model_validate(hstu.model_dump()) == hstu
    assert EncoderConfig() == EncoderConfig.model_validate({"kind": "sasrec"})


@pytest.mark.parametrize("kind", KINDS)
def test_initial_weights_are_a_function_of_the_seed(kind):
    def weights(seed: int) -> list[Tensor]:
        torch.manual_seed(int(torch.randint(1000, ())))  # the global generator must not matter
        encoder = Encoder(
            WIDTH, MAX_HISTORY, EncoderConfig.model_validate({"kind": kind, "attention": {"num_heads": 2}})
        )
        encoder.initialize(torch.Generator().manual_seed(seed))
        return [p.detach().clone() for p in encoder.parameters()]

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_initial_weights_have_the_usual_scale():
    encoder = Encoder(64, 100, EncoderConfig(num_blocks=1))
    encoder.initialize(torch.Generator().manual_seed(1))
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert parameter.eq(1.0).all(), name
        else:
            assert abs(parameter.std().item() - 0.02) < 0.002, name
