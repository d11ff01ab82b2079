"""Every form of attention: the fast path equals the reference in values and gradients, and no event sees what it must not."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.attention import tiled
from models.attention.attend import attend
from models.attention.blocks import AttentionContext
from models.attention.config import AttentionConfig
from models.attention.reference import attend_reference
from models.attention.terms import Attended, AttentionTerms
from tests.models.attention.forms import (
    FORMS,
    LENGTHS,
    ODD_LENGTHS,
    config_of,
    context_of,
    layout_from,
    parts_of,
    random_inputs,
)


def results(attention, inputs: list[Tensor], context: AttentionContext, parts: AttentionTerms) -> list[Tensor]:
    """Return output, penalty and the gradients of queries, keys, values and biases, of a weighted sum of all that comes out."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    for parameter in parts.parameters:
        parameter.grad = None
    attended: Attended = attention(*leaves, context, parts)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(attended.output.shape, generator=generator, dtype=torch.float64)
    total = (attended.output * weights).sum()
    if attended.penalty is not None:
        total = total + 0.7 * attended.penalty
    if total.requires_grad:  # an empty batch has nothing to differentiate
        total.backward()
    gradients = [
        torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone() for leaf in (*leaves, *parts.parameters)
    ]
    penalty = [] if attended.penalty is None else [attended.penalty.detach()]
    return [attended.output.detach(), *penalty, *gradients]


CASES = [
    *((form, lengths, size) for form in FORMS for lengths in LENGTHS for size in (tiled.PIECE_SCORES, 100)),
    *(("softmax", lengths, tiled.PIECE_SCORES) for lengths in ODD_LENGTHS),
    *(("softmax, window and global", lengths, tiled.PIECE_SCORES) for lengths in ODD_LENGTHS),
]


@pytest.mark.parametrize(("form", "lengths", "piece_scores"), CASES, ids=str)
def test_the_fast_path_equals_the_reference(monkeypatch, form, lengths, piece_scores):
    """The smaller pieces cut rows, and the queries of long rows."""
    monkeypatch.setattr(tiled, "PIECE_SCORES", piece_scores)
    config, context = config_of(form), context_of(lengths)
    inputs, parts = random_inputs(config, sum(lengths), 4, 1, torch.float64), parts_of(config, 4, torch.float64)
    fast, plain = (results(f, inputs, context, parts) for f in (attend, attend_reference))
    assert len(fast) == len(plain)
    for actual, expected in zip(fast, plain, strict=True):
        # The penalty is summed in float32.
        tolerance = 1e-5 if config.penalty else 1e-10
        torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reach", [1, 3, 15, 30])
@pytest.mark.parametrize("form", [form for form in FORMS if "global" not in form and not FORMS[form].get("num_global")])
def test_a_reach_limits_every_form_and_a_penalty_counts_the_events_that_it_is_given(form, reach):
    config, context = config_of(form), context_of(LENGTHS[1])
    counted = torch.arange(sum(LENGTHS[1])) % 3 > 0
    limited = replace(context, reach=reach, counted=counted)
    inputs, parts = random_inputs(config, sum(LENGTHS[1]), 4, 1, torch.float64), parts_of(config, 4, torch.float64)
    fast, plain = (results(f, inputs, limited, parts) for f in (attend, attend_reference))
    for actual, expected in zip(fast, plain, strict=True):
        tolerance = 1e-5 if config.penalty else 1e-10
        torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=tolerance, atol=tolerance)
    window = config.window or 1000
    assert torch.equal(fast[0], results(attend, inputs, context, parts)[0]) == (window <= reach)


@pytest.mark.parametrize("form", FORMS)
def test_a_reach_beyond_the_longest_history_changes_no_bit(form):
    config, context = config_of(form), context_of(LENGTHS[1])
    inputs, parts = random_inputs(config, sum(LENGTHS[1]), 4, 1, torch.float64), parts_of(config, 4, torch.float64)
    limited = replace(context, reach=max(LENGTHS[1]))
    actual, expected = (results(attend, inputs, given, parts) for given in (limited, context))
    assert all(torch.equal(left, right) for left, right in zip(actual, expected, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_the_reference_are_right(form):
    config, context = config_of(form), context_of([3, 0, 1, 5])
    parts = parts_of(config, 2, torch.float64)
    inputs = [tensor.requires_grad_() for tensor in random_inputs(config, 9, 2, 3, torch.float64)]

    def outputs(*tensors):
        attended = attend_reference(*tensors[:3], context, parts)
        return attended.output if attended.penalty is None else (attended.output, attended.penalty)

    assert torch.autograd.gradcheck(outputs, [*inputs, *parts.parameters], fast_mode=True)


@pytest.mark.parametrize("form", FORMS)
def test_in_bfloat16_it_stays_near_the_reference(form):
    config, context = config_of(form), context_of([3, 0, 20, 40])
    inputs = random_inputs(config, 63, 8, 4, torch.float32)
    parts = parts_of(config, 8, torch.float32)
    plain = attend_reference(*inputs, context, parts).output
    half = attend(*(tensor.bfloat16() for tensor in inputs), context, parts).output
    assert half.dtype == torch.bfloat16
    # 8 bits of precision in queries, keys, values and weights: about 1 % of the largest output.
    assert (half.float() - plain).abs().max() < 0.03 * plain.abs().max()


def plain_config(**settings) -> AttentionConfig:
    return AttentionConfig.model_validate({"num_heads": 1, **settings})


def test_softmax_by_hand():
    """Two events with equal keys: the second averages both values, the first sees only its own."""
    key, value = torch.ones(2, 1, 2), torch.tensor([[[1.0, 0.0]], [[3.0, 4.0]]])
    parts = AttentionTerms(plain_config(), 1.0, 1)
    output = attend_reference(torch.randn(2, 1, 2), key, value, AttentionContext(layout_from([2])), parts).output
    torch.testing.assert_close(output[:, 0], torch.tensor([[[1.0, 0.0]], [[2.0, 2.0]]]))


def test_silu_by_hand():
    """Scores 1 and 2 of the second event: weights s sigmoid(s) / 4."""
    query, key = torch.ones(2, 1, 1), torch.tensor([[[1.0]], [[2.0]]])
    parts = AttentionTerms(plain_config(normalisation="silu"), 1.0, 4)
    output = attend_reference(query, key, torch.eye(2)[:, None], AttentionContext(layout_from([2])), parts).output
    expected = torch.tensor([[0.73105858 / 4, 0.0], [0.73105858 / 4, 2 * 0.88079708 / 4]])
    torch.testing.assert_close(output[:, 0, 0], expected)


@pytest.mark.parametrize(
    ("normalisation", "scores", "weights"),
    [
        ("sparsemax", [1.0, 0.5, -3.0], [0.75, 0.25, 0.0]),
        ("sparsemax", [5.0, 0.0], [1.0, 0.0]),
        ("sparsemax", [0.3, 0.3, 0.3], [1 / 3, 1 / 3, 1 / 3]),
        ("entmax15", [2.0, 2.0], [0.5, 0.5]),
        ("entmax15", [4.0, 0.0, -9.0], [1.0, 0.0, 0.0]),
        # halves 0.5 and 0: (0.5 - t)^2 + t^2 = 1 with t = (0.5 - sqrt(1.75)) / 2
        ("entmax15", [1.0, 0.0], [0.8307189, 0.1692811]),
    ],
)
def test_sparse_weights_by_hand(normalisation, scores, weights):
    """The last event scores the others and itself so: keys are the scores, its query is one."""
    key = torch.tensor(scores)[:, None, None]
    parts = AttentionTerms(plain_config(normalisation=normalisation), 1.0, 1)
    value = torch.eye(len(scores))[:, None]
    for attention in (attend, attend_reference):
        output = attention(torch.ones_like(key), key, value, AttentionContext(layout_from([len(scores)])), parts).output
        torch.testing.assert_close(output[-1, 0, 0], torch.tensor(weights), rtol=1e-5, atol=1e-6)


def test_the_penalty_is_the_entropy_of_the_weights():
    """Equal scores: event i spreads its weight over i + 1 events, so its entropy is log(i + 1), in each of two heads."""
    config = AttentionConfig(num_heads=2, penalty=1.0)
    parts = AttentionTerms(config, 1.0, 1, with_penalty=True)
    zeros = torch.zeros(3, 2, 4)
    expected = 2 * torch.tensor([1.0, 2.0, 3.0]).log().sum()
    for attention in (attend, attend_reference):
        penalty = attention(zeros, zeros, zeros, AttentionContext(layout_from([3])), parts).penalty
        torch.testing.assert_close(penalty, expected)


LONG = [5, 0, 130, 1, 131, 64, 2]


def long_context() -> AttentionContext:
    return context_of(LONG)


@pytest.mark.parametrize("attention", [attend, attend_reference])
@pytest.mark.parametrize("form", [form for form in FORMS if "bidirectional" not in form])
def test_a_later_event_leaves_earlier_outputs_bit_identical(attention, form):
    config, context = config_of(form), long_context()
    parts = parts_of(config, 8, torch.float32)
    inputs = random_inputs(config, sum(LONG), 8, 4, torch.float32)
    before = attention(*inputs, context, parts).output
    for history in (0, 2, 5):
        start, end = context.layout.offsets[history : history + 2].tolist()
        for changed in (end - 1, start + (end - start) // 2):
            perturbed = [tensor.clone() for tensor in inputs]
            for tensor in perturbed:
                tensor[changed:end] = 10.0 * torch.randn(end - changed, *tensor.shape[1:])
            later = AttentionContext(context.layout, context.times.clone(), context.request_times.clone())
            later.times[changed:end] += 10**6
            later.request_times[changed:end] += 10**7
            after = attention(*perturbed, later, parts).output
            assert torch.equal(after[start:changed], before[start:changed])
            assert not torch.equal(after[changed:end], before[changed:end])


@pytest.mark.parametrize("form", FORMS)
def test_histories_do_not_see_each_other(form):
    """History 0 holds the event that stands in for padding."""
    config, context = config_of(form), long_context()
    parts = parts_of(config, 8, torch.float32)
    inputs = random_inputs(config, sum(LONG), 8, 5, torch.float32)
    before = attend(*inputs, context, parts).output
    for history in (0, 2, 3):
        start, end = context.layout.offsets[history : history + 2].tolist()
        perturbed = [tensor.clone() for tensor in inputs]
        for tensor in perturbed:
            tensor[start:end] += 100.0
        after = attend(*perturbed, context, parts).output
        outside = torch.ones(sum(LONG), dtype=torch.bool)
        outside[start:end] = False
        assert torch.equal(after[outside], before[outside])
        assert not torch.equal(after[~outside], before[~outside])


@pytest.mark.parametrize("form", ["softmax", "softmax, window and global", "silu, bias of both, penalty"])
def test_an_output_depends_only_on_visible_events(form):
    """Gradients of one output: none from later events, other histories, or beyond the window."""
    config, context = config_of(form), context_of([4, 9])
    leaves = [tensor.requires_grad_() for tensor in random_inputs(config, 13, 4, 6, torch.float64)]
    attend(*leaves, context, parts_of(config, 4, torch.float64)).output[11].sum().backward()  # the eighth of the second
    seen = [4, 5, 6, 8, 9, 10, 11] if config.window else list(range(4, 12))
    for leaf, reaching in zip(leaves, ([11], seen, seen), strict=True):
        assert leaf.grad.abs().sum(dim=(1, 2)).nonzero().flatten().tolist() == reaching


def test_without_positions_a_permuted_history_changes_nothing():
    """Without positions a bidirectional softmax is a function of the set of events."""
    config, context = config_of("softmax, bidirectional"), AttentionContext(layout_from([6, 3]))
    inputs, order = random_inputs(config, 9, 4, 7, torch.float64), [3, 1, 5, 0, 4, 2, 6, 7, 8]
    parts = parts_of(config, 4, torch.float64)
    straight = attend(*inputs, context, parts).output
    permuted = attend(*(tensor[order] for tensor in inputs), context, parts).output
    torch.testing.assert_close(permuted, straight[order], rtol=1e-12, atol=1e-12)
    # and the last event's output under a causal mask is a function of the set of those before it
    config = config_of("softmax")
    straight = attend(*inputs, context, parts_of(config, 4, torch.float64)).output
    shuffled = attend(
        *(t[[3, 1, 4, 0, 2, 5, 6, 7, 8]] for t in inputs), context, parts_of(config, 4, torch.float64)
    ).output
    torch.testing.assert_close(shuffled[5], straight[5], rtol=1e-12, atol=1e-12)


def test_dropout_on_weights_is_repeatable_unbiased_and_the_same_in_backward():
    config, context = config_of("softmax"), context_of([30, 12])
    inputs = random_inputs(config, 42, 4, 8, torch.float64)
    kept = parts_of(config, 4, torch.float64)
    dropping = parts_of(config, 4, torch.float64, threshold=64)

    def run(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return results(attend, inputs, context, dropping)

    assert all(torch.equal(a, b) for a, b in zip(run(1), run(1), strict=True))
    assert not torch.equal(run(1)[0], run(2)[0])
    mean = torch.stack([run(seed)[0] for seed in range(400)]).mean(dim=0)
    expected = attend(*inputs, context, kept).output
    assert (mean - expected).abs().max() < 0.25
    # The output is linear in the values: its gradient is right only if backward drops the same weights as forward.
    torch.manual_seed(5)
    leaves = [inputs[0], inputs[1], inputs[2].clone().requires_grad_()]
    output = attend(*leaves, context, dropping).output
    output.sum().backward()
    torch.testing.assert_close((leaves[2].grad * inputs[2]).sum(), output.sum().detach())


def test_the_cost_of_a_window_is_linear_in_it():
    """Of a history of 4,096 events a window of 64 makes pairs of 128 keys a query, not of 4,096."""
    context = AttentionContext(layout_from([4096]))
    (block,) = context.blocks(AttentionConfig(window=64))
    assert block.query_gather.shape == (64, 64)
    assert block.key_gather.shape == (64, 128)


@pytest.mark.parametrize("shared", [1, 2])
def test_columns_of_one_projection_give_the_same_as_separate_tensors(shared):
    """In values and gradients, bit for bit."""
    config = AttentionConfig(num_heads=2, num_key_value_heads=2 // shared)
    lengths = LENGTHS[1]
    inputs = random_inputs(config, sum(lengths), 4, 1, torch.float32)
    parts = parts_of(config, 4, torch.float32)
    joint = torch.cat([each.flatten(1) for each in inputs], dim=-1).requires_grad_()
    columns = joint.split([each.shape[1] * 4 for each in inputs], dim=-1)
    views = [column.unflatten(-1, each.shape[1:]) for column, each in zip(columns, inputs, strict=True)]
    together = attend(*views, context_of(lengths), parts, joint).output
    leaves = [each.requires_grad_() for each in inputs]
    separate = attend(*leaves, context_of(lengths), parts).output
    assert torch.equal(together, separate)
    together.square().sum().backward()
    separate.square().sum().backward()
    assert torch.equal(joint.grad, torch.cat([leaf.grad.flatten(1) for leaf in leaves], dim=-1))


def test_in_training_a_cpu_computes_a_softmax_in_bfloat16_from_exact_weights():
    """Only inputs and output are rounded, under autocast too."""
    config = AttentionConfig(num_heads=2)
    lengths = LENGTHS[1]
    inputs = [each.bfloat16().requires_grad_() for each in random_inputs(config, sum(lengths), 16, 1, torch.float32)]
    parts = parts_of(config, 16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        low = attend(*inputs, context_of(lengths), parts).output
    exact = attend(*(each.float() for each in inputs), context_of(lengths), parts).output
    assert torch.equal(low, exact.bfloat16())
