"""How far back a ranker's scores look: as far as the settings say, no event further, and at a cost that grows with the span."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from models.attention.blocks import AttentionContext
from models.attention.candidates import CandidateContext, lay_out_candidates
from models.batches.jagged import layout_of
from models.ranking.config import RankingConfig
from models.ranking.interest import Interest, interest_of
from models.ranking.reach import Reach, reach_of
from tests.models.attention.shown import Shown
from tests.models.ranking.test_interest import WIDTH, Given

MAX_HISTORY = 4
SOFT = {"positions": "none", "dropout": 0.0, "attention": {"bias": "both"}}
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "events as they are": ({"kind": "din"}, 4),
    "no history": ({"kind": "logistic"}, 4),
    "target attention over one block": ({"kind": "din", "encoder": {**SOFT, "num_blocks": 1}}, 4 + 3),
    "target attention over two blocks": ({"kind": "din", "encoder": {**SOFT, "num_blocks": 2}}, 4 + 6),
    "mean of two blocks": ({"kind": "pooled", "encoder": {**SOFT, "num_blocks": 2}}, 4 + 6),
    "one block": ({"kind": "bst"}, 4),
    "three blocks": ({"kind": "hstu", "encoder": {**SOFT, "num_blocks": 3}}, 4 + 6),
    "three blocks in a window": (
        {"kind": "din", "encoder": {**SOFT, "num_blocks": 3, "attention": {"window": 2, "bias": "both"}}},
        4 + 3,
    ),
    "a window wider than max_history": (
        {"kind": "din", "encoder": {**SOFT, "num_blocks": 2, "attention": {"window": 9}}},
        4 + 6,
    ),
    "pooled events": ({"kind": "din", "encoder": {**SOFT, "num_blocks": 1, "pooling": "attention"}}, 4 + 6),
    "pooled candidates": ({"kind": "bst", "encoder": {**SOFT, "num_blocks": 2, "pooling": "attention"}}, 4 + 6),
    "no blocks": ({"kind": "bst", "encoder": {**SOFT, "num_blocks": 0}}, 4),
}
BLIND = ("no history", "no blocks")  # these look at fewer events than may be gathered


def config_of(case: str) -> RankingConfig:
    return RankingConfig.model_validate({"max_history": MAX_HISTORY, **CASES[case][0]})


def interest_in(config: RankingConfig) -> Interest:
    """Return the unit with weights that are not trivial."""
    interest = interest_of(WIDTH, MAX_HISTORY, config.encoder, config.interest)
    assert interest is not None
    interest.initialize(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for number, parameter in enumerate(interest.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return interest.double()


def given_of(num_events: int, ends: list[int], seed: int = 3) -> Given:
    """Return one history with candidates after `ends` events."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.randint(1, 5000, (num_events,), generator=generator).cumsum(0)
    shown_at = times[torch.tensor(ends) - 1] + 7
    one = Shown([num_events], [len(ends)], np.asarray(ends), times, shown_at, MAX_HISTORY)
    event, candidate = (
        torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) for n in (num_events, len(ends))
    )
    none = [torch.zeros(n, dtype=torch.int64) for n in (num_events, len(ends))]
    return Given(one, event, candidate, *none)


@pytest.mark.parametrize("case", CASES)
def test_the_reach_is_that_of_the_settings(case):
    assert reach_of(config_of(case)) == Reach(MAX_HISTORY, CASES[case][1])


@pytest.mark.parametrize("case", [case for case in CASES if case not in BLIND])
def test_a_score_depends_on_the_events_within_its_reach_and_on_no_others(case):
    config, given = config_of(case), given_of(30, [17, 26])
    given.events.requires_grad_()
    said, _ = interest_in(config).eval()(given.events, given.candidates, given.batch)
    said[1].pow(3).sum().backward()
    (depends,) = given.events.grad.abs().sum(dim=1).nonzero(as_tuple=True)
    assert depends.tolist() == list(range(26 - CASES[case][1], 26))


def later(given: Given, cut: int) -> Given:
    """Return the same without the oldest events."""
    old = given.shown
    times, ends = old.times[cut:], old.history_end - cut
    kept = Shown([old.lengths[0] - cut], old.counts, ends, times, old.candidate_times, MAX_HISTORY)
    return Given(kept, given.events[cut:], given.candidates, given.event_categories[cut:], given.candidate_categories)


def test_events_that_only_complete_what_others_are_encoded_as_add_nothing_to_a_penalty():
    attention = {"penalty": 0.1, "bias": "both"}
    encoder = {**SOFT, "num_blocks": 2, "attention": attention}
    config = RankingConfig.model_validate({"kind": "din", "max_history": MAX_HISTORY, "encoder": encoder})
    interest, whole = interest_in(config).train(), given_of(40, [30, 36])
    actual = []
    for given in (whole, later(whole, 11), later(whole, 30 - reach_of(config).receptive)):
        actual.append(interest(given.events, given.candidates, given.batch)[1].item())
    assert actual[0] > 0
    assert actual[1:] == pytest.approx([actual[0]] * 2, rel=1e-5)  # it is summed in float32


def pairs_of(config: RankingConfig, span: int) -> Iterator[float]:
    """Yield pairs that are computed for one history of events with an impression after every fifth, by kind of attention."""
    ends = np.arange(0, span + 1, 5)
    offsets = np.asarray([0, span])
    events = AttentionContext(layout_of(offsets), reach=config.max_history)
    candidates = CandidateContext(lay_out_candidates(offsets, np.asarray([0, ends.size]), ends, config.max_history))
    for context in (events, candidates):
        blocks: Any = context.blocks(config.encoder.attention)
        yield float(sum(block.query_gather.numel() * block.key_gather.shape[1] for block in blocks))


@pytest.mark.parametrize("window", [None, 20])
def test_the_cost_of_a_user_grows_with_the_span_of_impressions_and_not_with_its_square(window):
    config = RankingConfig.model_validate(
        {"kind": "hstu", "max_history": 50, "encoder": {"attention": {"window": window}}}
    )
    for short, long in zip(pairs_of(config, 2_000), pairs_of(config, 16_000), strict=True):
        assert long < 8.5 * short


def test_events_seen_from_everywhere_by_other_events_are_refused():
    encoder = {"attention": {"window": 3, "num_global": 2}}
    with pytest.raises(
        ValueError, match=r"num_global = 2 counts from the oldest event kept.*encoder\.attention\.window"
    ):
        RankingConfig.model_validate({"kind": "hstu", "encoder": encoder})
    RankingConfig.model_validate({"kind": "din", "encoder": encoder})  # no events attend there
