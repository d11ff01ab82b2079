"""Candidates together with events in every encoder: as the event after those before them, unseen by anything else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.attention.blocks import AttentionContext
from models.batches.jagged import layout_of
from models.encoders.encoder import Encoder
from tests.models.attention.shown import Shown, shown
from tests.models.encoders.test_encoder import CASES, CAUSAL, MAX_HISTORY, WIDTH, make_encoder

LENGTHS, COUNTS = [7, 0, 1, 20, 3, 3], [3, 1, 2, 20, 0, 4]
FORMS = [*CAUSAL, "sasrec, none"]


def encoder_of(case: str, **more) -> Encoder:
    """Return the configs without learned positions, which rank nothing."""
    settings = {name: value for name, value in CASES[case.removesuffix(", none")].items() if name != "positions_from"}
    return make_encoder({"positions": "none", **settings}, **more)


def vectors_of(given: Shown, dtype: torch.dtype = torch.float32) -> Tensor:
    rows = sum(given.lengths) + sum(given.counts)
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(2), dtype=dtype)


def context_of(given: Shown) -> AttentionContext:
    return AttentionContext(given.layout, given.times, given.times, given.context(itself=True))


def shown_here() -> Shown:
    return shown(LENGTHS, COUNTS, reach=MAX_HISTORY)


@pytest.mark.parametrize("case", FORMS)
def test_a_candidate_is_encoded_as_the_event_after_those_before_it(case):
    """In values and gradients, of inputs and of every weight: a history for each candidate, which ends with it."""
    encoder, given = encoder_of(case).double(), shown_here()
    layout, num_events = given.candidate_layout, sum(given.lengths)
    weights = torch.randn(sum(COUNTS), WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    results = []
    for together in (True, False):
        x = vectors_of(given, torch.float64).requires_grad_()
        encoder.zero_grad()
        if together:
            output = encoder(x, context_of(given))[0]
        else:
            outputs = []
            for number, (first, end) in enumerate(
                zip(layout.first_event.tolist(), layout.history_end.tolist(), strict=True)
            ):
                own = [*range(first, first + end), num_events + number]
                times = torch.cat((given.times[first : first + end], given.candidate_times[[number]]))
                alone = AttentionContext(layout_of(np.asarray([0, end + 1])), times, times)
                outputs.append(encoder(x[own], alone)[0][-1])
            output = torch.stack(outputs)
        (output * weights).sum().backward()
        gradients = [p.grad for name, p in encoder.named_parameters() if not name.startswith("item_tower")]
        results.append([output.detach(), x.grad, *gradients])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", FORMS)
def test_later_events_and_other_histories_leave_a_candidate_bit_identical(case):
    encoder, given = encoder_of(case).eval(), shown_here()
    x, num_events, layout = vectors_of(given), sum(given.lengths), given.candidate_layout
    before = encoder(x, context_of(given))[0]
    for candidate in (0, 2, 3, 5, 10, 25, 28):
        first, end = int(layout.first_event[candidate]), int(layout.history_end[candidate])
        other = torch.ones(x.shape[0], dtype=torch.bool)
        other[[*range(first, first + end), num_events + candidate]] = False
        changed = torch.where(other[:, None], 5.0 * x.flip(0) + 1.0, x)
        times = torch.where(other[:num_events], given.times + 10**6, given.times)
        candidate_times = torch.where(other[num_events:], given.candidate_times + 10**7, given.candidate_times)
        after = encoder(changed, context_of(replace(given, times=times, candidate_times=candidate_times)))[0]
        changed_too = torch.arange(sum(COUNTS)) != candidate
        assert torch.equal(after[candidate], before[candidate])
        assert (after[changed_too] != before[changed_too]).any(dim=1).all()


@pytest.mark.parametrize("case", ["hstu", "sasrec, none", "ligr, differential, window"])
def test_activations_computed_again_give_the_same_gradients(case):
    """Dropout included."""
    results, given = [], shown_here()
    for recompute in (False, True):
        encoder = encoder_of(case, dropout=0.3, recompute=recompute).train()
        x = vectors_of(given).requires_grad_()
        torch.manual_seed(4)
        output, _ = encoder(x, context_of(given))
        output.pow(2).sum().backward()
        results.append([output.detach(), x.grad, *(p.grad for p in encoder.parameters() if p.grad is not None)])
    for kept, again in zip(*results, strict=True):
        assert torch.equal(kept, again)
