"""Candidates as queries: equal to the reference in values and gradients, blind to later events and to each other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.attention import tiled
from models.attention.attend import attend, attend_to_events
from models.attention.blocks import AttentionContext
from models.attention.candidates import CandidateContext
from models.attention.reference import attend_reference, attend_to_events_reference
from models.attention.terms import Attended, AttentionTerms
from tests.models.attention.forms import FORMS, config_of, parts_of
from tests.models.attention.shown import REACH, Shown, shown, vectors

CAUSAL = [form for form in FORMS if "bidirectional" not in form]
MANY = tiled.PIECE_SCORES


def inputs_of(config, given: Shown, itself: bool, width: int = 4, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return queries of candidates, keys and values of events, and where candidates see themselves keys and values of theirs."""
    num_events, num_candidates, shared = sum(given.lengths), sum(given.counts), config.key_value_heads
    sizes = [(num_candidates, config.num_heads), (num_events, shared), (num_events, shared)]
    sizes += 2 * [(num_candidates, shared)] if itself else []
    return [vectors(rows, heads, width, seed, dtype) for seed, (rows, heads) in enumerate(sizes)]


def results(attention, inputs: list[Tensor], context: CandidateContext, parts: AttentionTerms) -> list[Tensor]:
    """Return output, penalty and all gradients of a weighted sum of both."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    for parameter in parts.parameters:
        parameter.grad = None
    attended: Attended = attention(*leaves[:3], context, parts, tuple(leaves[3:]))
    weights = torch.randn(attended.output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    total = (attended.output * weights).sum()
    if attended.penalty is not None:
        total = total + 0.7 * attended.penalty
    if total.requires_grad:  # a window of one shows a candidate only itself
        total.backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad.clone() for x in (*leaves, *parts.parameters)]
    return [attended.output.detach(), *([] if attended.penalty is None else [attended.penalty.detach()]), *gradients]


@pytest.mark.pairwise
@pytest.mark.parametrize("itself", [False, True], ids=["events only", "itself too"])
@pytest.mark.parametrize("piece_scores", [MANY, 100])
@pytest.mark.parametrize("form", CAUSAL)
def test_the_fast_path_equals_the_reference(monkeypatch, form, piece_scores, itself):
    monkeypatch.setattr(tiled, "PIECE_SCORES", piece_scores)
    config, given = config_of(form), shown()
    inputs, parts = inputs_of(config, given, itself), parts_of(config, 4, torch.float64)
    fast, plain = (
        results(attention, inputs, given.context(itself), parts)
        for attention in (attend_to_events, attend_to_events_reference)
    )
    tolerance = 1e-5 if config.penalty else 1e-10  # the penalty is summed in float32
    for actual, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=tolerance, atol=tolerance)
    assert fast[0].abs().sum() > 1.0 or (config.window == 1 and not itself)


@pytest.mark.pairwise
@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("form", ["softmax", "silu, channels", "entmax15", "none, bias of both, penalty"])
@pytest.mark.parametrize(
    ("lengths", "counts"), [([0, 0], [2, 1]), ([3], [1]), ([1], [300]), ([5, 2], [0, 0]), ([0, 2], [3, 0])]
)
def test_odd_batches_equal_the_reference(form, lengths, counts, itself):
    """No events at all, no candidates at all, one of each, and a history that is asked about hundreds of times."""
    config, given = config_of(form), shown(lengths, counts)
    inputs, parts = inputs_of(config, given, itself), parts_of(config, 4, torch.float64)
    ours = attend_to_events(*inputs[:3], given.context(itself), parts, tuple(inputs[3:]))
    plain = attend_to_events_reference(*inputs[:3], given.context(itself), parts, tuple(inputs[3:]))
    torch.testing.assert_close(ours.output, plain.output, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", CAUSAL)
def test_gradients_of_the_reference_are_right(form):
    config, given = config_of(form), shown([3, 0, 5], [2, 1, 3])
    parts, inputs = parts_of(config, 2, torch.float64), inputs_of(config, given, True, width=2)

    def outputs(*tensors: Tensor) -> tuple[Tensor, ...]:
        attended = attend_to_events_reference(*tensors[:3], given.context(True), parts, tensors[3:5])
        return (attended.output,) if attended.penalty is None else (attended.output, attended.penalty)

    leaves = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(outputs, [*leaves, *parts.parameters], fast_mode=True)


def test_by_hand():
    """Two events with equal keys: a candidate after both averages them, one after the first sees it alone, one before nothing."""
    given = replace(shown([2], [3]), history_end=np.asarray([0, 1, 2]))
    value = torch.tensor([[[1.0, 0.0]], [[3.0, 4.0]]])
    parts = AttentionTerms(config_of("softmax").model_copy(update={"num_heads": 1, "num_key_value_heads": 1}), 1.0, 1)
    query, key = torch.randn(3, 1, 2), torch.ones(2, 1, 2)
    seen = attend_to_events(query, key, value, given.context(), parts).output[:, 0, 0]
    torch.testing.assert_close(seen, torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 2.0]]))


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("form", CAUSAL)
def test_later_events_and_other_histories_leave_a_candidate_bit_identical(form, itself):
    """Whatever is not among its own events: those at and after history_end, other histories, other candidates."""
    config, given = config_of(form), shown()
    inputs, parts = inputs_of(config, given, itself, dtype=torch.float32), parts_of(config, 4, torch.float32)

    def outputs(tensors: list[Tensor], of: Shown) -> Tensor:
        return attend_to_events(*tensors[:3], of.context(itself), parts, tuple(tensors[3:])).output

    before = outputs(inputs, given)
    layout = given.candidate_layout
    for candidate in (0, 3, 6, 20, 60, 84, 88):
        own = torch.zeros(sum(given.lengths), dtype=torch.bool)
        first, end = int(layout.first_event[candidate]), int(layout.history_end[candidate])
        own[first + max(0, end - REACH) : first + end] = True
        other = torch.arange(sum(given.counts)) != candidate
        changed, times, candidate_times = (
            [x.clone() for x in inputs],
            given.times.clone(),
            given.candidate_times.clone(),
        )
        for tensor, rows in zip(changed, (other, ~own, ~own, other, other), strict=False):
            tensor[rows] += 5.0 * torch.randn_like(tensor[rows])
        times[~own] += 10**6
        candidate_times[other] += 10**7
        after = outputs(changed, replace(given, times=times, candidate_times=candidate_times))
        assert torch.equal(after[candidate], before[candidate])
        assert not torch.equal(after[other], before[other]) or (config.window == 1 and not itself)


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("form", CAUSAL)
def test_a_candidate_scores_the_same_alone_and_among_others(form, itself):
    """User-major equals impression-major: one history for all of its candidates, or each with a copy of its own."""
    config, given = config_of(form), shown()
    inputs, parts = inputs_of(config, given, itself), parts_of(config, 4, torch.float64)
    together = attend_to_events(*inputs[:3], given.context(itself), parts, tuple(inputs[3:])).output
    for candidate in range(0, sum(given.counts), 7):
        alone, events, own = given.alone(candidate)
        cut = [x[s] for x, s in zip(inputs, (own, events, events, own, own), strict=False)]
        output = attend_to_events(*cut[:3], alone.context(itself), parts, tuple(cut[3:])).output
        torch.testing.assert_close(output, together[own], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", CAUSAL)
def test_events_and_candidates_together_equal_each_alone(form):
    """Events do not see candidates: their results are bit-identical with and without."""
    config, given = config_of(form), shown()
    parts = parts_of(config, 4, torch.float32)
    inputs = inputs_of(config, given, True, dtype=torch.float32)
    event_query = vectors(sum(given.lengths), config.num_heads, 4, 8, torch.float32)
    context = AttentionContext(given.layout, given.times, given.times)
    both = AttentionContext(given.layout, given.times, given.times, given.context(itself=True))
    query, key = torch.cat((event_query, inputs[0])), torch.cat((inputs[1], inputs[3]))
    value = torch.cat((inputs[2], inputs[4]))
    together = attend(query, key, value, both, parts)
    events = attend(event_query, inputs[1], inputs[2], context, parts)
    candidates = attend_to_events(*inputs[:3], given.context(True), parts, tuple(inputs[3:]))
    assert torch.equal(together.output, torch.cat((events.output, candidates.output)))
    if config.penalty:
        torch.testing.assert_close(together.penalty, events.penalty + candidates.penalty)
        plain = attend_reference(event_query, inputs[1], inputs[2], context, parts).penalty
        torch.testing.assert_close(events.penalty, plain)


def test_every_candidate_is_in_one_row_and_rows_waste_little():
    random = np.random.default_rng(1)
    lengths, counts = random.integers(0, 200, 300).tolist(), random.integers(0, 100, 300).tolist()
    layout = shown(lengths, counts, reach=100).candidate_layout
    seen = torch.cat([block.scatter for block in layout.blocks])
    assert torch.equal(seen.sort().values, torch.arange(sum(counts)))
    pairs = sum(block.query_gather.shape[1] * sum(block.num_keys) for block in layout.blocks)
    needed = int(layout.history_end.clamp(max=100).sum())
    assert pairs < 1.8 * needed
    keys = sum(block.key_gather.numel() for block in layout.blocks)
    assert keys < needed / 3  # shared by the candidates of a history


def test_a_small_batch_is_not_cut_into_more_blocks_than_pay():
    random = np.random.default_rng(2)
    lengths, counts = random.integers(0, 20, 30).tolist(), random.integers(0, 8, 30).tolist()
    (block,) = shown(lengths, counts, reach=100).candidate_layout.blocks
    assert torch.equal(block.scatter.sort().values, torch.arange(sum(counts)))
