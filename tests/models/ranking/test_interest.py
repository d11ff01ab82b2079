"""Every interest unit: the same alone and among others, independent of later events, equal to its paper."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.encoders.config import EncoderConfig
from models.features.request import ItemRequest
from models.features.values import id_values
from models.ranking.batch import RankingBatch
from models.ranking.interest import Interest, interest_of
from models.ranking.interest_config import InterestConfig, check_encoder
from tests.models.attention.shown import Shown, shown

WIDTH, MAX_HISTORY = 8, 24
LENGTHS, COUNTS = [7, 0, 1, 20, 3, 3], [3, 1, 2, 20, 0, 4]
PLAIN_EVENTS = {"num_blocks": 0, "final_norm": False, "positions": "none"}
DIN = {"score": "activation_unit", "projection": False, "normalisation": "none"}
FORMS = {
    "DIN": (PLAIN_EVENTS, {"attention": DIN}),
    "DIN over HSTU": ({"kind": "hstu", "positions": "none"}, {"attention": {**DIN, "unit_activation": "prelu"}}),
    "BST": (
        {"num_blocks": 1, "positions": "none", "norm_place": "post", "attention": {"num_heads": 2, "bias": "time"}},
        {"kind": "encoder"},
    ),
    "HSTU": ({"kind": "hstu", "positions": "none"}, {"kind": "encoder"}),
    "rotary, penalties": (
        {"positions": "rotary", "attention": {"penalty": 0.1}},
        {"attention": {"num_heads": 2, "bias": "both", "penalty": 0.1}},
    ),
    "SIM by category": (
        PLAIN_EVENTS,
        {
            "attention": {"num_heads": 2, "bias": "time"},
            "search": {"kind": "category", "feature": "topic", "num_found": 3},
        },
    ),
    "SIM by similarity": (PLAIN_EVENTS, {"attention": DIN, "search": {"kind": "similarity", "num_found": 4}}),
    "mean": (PLAIN_EVENTS, {"kind": "mean"}),
    "mean of what is found": (
        {"kind": "ligr", "positions": "none"},
        {"kind": "mean", "search": {"kind": "similarity", "num_found": 4}},
    ),
}
OF_PLAIN_EVENTS = [form for form, (encoder, _) in FORMS.items() if encoder is PLAIN_EVENTS]


@dataclass(frozen=True)
class Given:
    """A batch as an interest sees it, and the vectors of its events and candidates; each is of an item of its own."""

    shown: Shown
    events: Tensor
    candidates: Tensor
    event_categories: Tensor
    candidate_categories: Tensor

    @property
    def batch(self) -> RankingBatch:
        num_events, num_candidates = self.events.shape[0], self.candidates.shape[0]
        category = torch.cat((self.event_categories, self.candidate_categories)).numpy()
        (known,) = np.nonzero(category >= 0)
        numbers, counts = torch.arange(num_events + num_candidates), np.asarray(self.shown.counts)
        return RankingBatch(
            row_ids=torch.arange(counts.size),
            layout=self.shown.layout,
            candidate_layout=self.shown.candidate_layout,
            lookup_ids=numbers,
            items=ItemRequest({}, values={"topic": id_values(category[known], known)}),
            history_index=numbers[:num_events],
            candidate_offsets=torch.from_numpy(np.concatenate(([0], np.cumsum(counts)))),
            history_of=torch.from_numpy(np.repeat(np.arange(counts.size), counts)),
            candidate_index=numbers[num_events:],
            candidate_ids=numbers[num_events:],
            shown_at=self.shown.candidate_times,
            history_end=torch.from_numpy(self.shown.history_end),
            labels={},
            times=self.shown.times,
            candidate_times=self.shown.candidate_times,
        )

    def alone(self, candidate: int, most_recent: int | None = None) -> "Given":
        """Return one candidate and its history, or the most recent events of it before the candidate."""
        only, events, own = self.shown.alone(candidate)
        if most_recent is not None:
            end = int(only.history_end[0])
            kept = min(end, most_recent)
            events = slice(events.start + end - kept, events.start + end)
            only = replace(only, lengths=[kept], history_end=np.asarray([kept]), times=self.shown.times[events])
        return Given(
            only,
            self.events[events],
            self.candidates[own],
            self.event_categories[events],
            self.candidate_categories[own],
        )


def given_of(dtype: torch.dtype = torch.float32, reach: int = MAX_HISTORY) -> Given:
    sizes, generator = (sum(LENGTHS), sum(COUNTS)), torch.Generator().manual_seed(7)
    event, candidate = (torch.randn(size, WIDTH, generator=generator, dtype=dtype) for size in sizes)
    categories = [torch.randint(-1, 3, (size,), generator=generator) for size in sizes]
    return Given(shown(LENGTHS, COUNTS, reach=reach), event, candidate, *categories)


def interest_in(form: str, dtype: torch.dtype = torch.float32, **encoder) -> Interest:
    """Return the unit with weights that are not trivial, without dropout."""
    settings, interest = FORMS[form]
    config = EncoderConfig.model_validate({"dropout": 0.0, **settings, **encoder})
    check_encoder(config)
    result = interest_of(WIDTH, MAX_HISTORY, config, InterestConfig.model_validate(interest))
    result.initialize(torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return result.to(dtype)


@pytest.mark.parametrize("form", FORMS)
def test_a_history_for_all_of_its_candidates_equals_one_for_each(form):
    """In values, and in gradients of vectors and of every weight."""
    interest, results = interest_in(form, torch.float64), []
    for together in (True, False):
        given = given_of(torch.float64)
        leaves = [given.events.requires_grad_(), given.candidates.requires_grad_()]
        interest.zero_grad()
        batches = [given] if together else [given.alone(number) for number in range(sum(COUNTS))]
        outputs = [interest(part.events, part.candidates, part.batch) for part in batches]
        output = torch.cat([said for said, _ in outputs])
        assert output.shape == (sum(COUNTS), interest.width)
        output.pow(3).sum().backward()
        gradients = [leaf.grad for leaf in (*leaves, *interest.parameters())]
        results.append([output.detach(), *(g for g in gradients if g is not None)])
    assert len(results[0]) == len(results[1])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("form", OF_PLAIN_EVENTS)
def test_a_candidate_sees_its_most_recent_events_of_a_longer_history(form):
    """Which others of its user stand in the batch, and reach further back, does not matter."""
    interest, given = interest_in(form, torch.float64).eval(), given_of(torch.float64, reach=5)
    together, _ = interest(given.events, given.candidates, given.batch)
    for number in range(sum(COUNTS)):
        alone = given.alone(number, most_recent=5)
        said, _ = interest(alone.events, alone.candidates, alone.batch)
        torch.testing.assert_close(said[0], together[number], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_later_events_and_other_histories_change_nothing(form):
    """Bit for bit: later events of the same user, their times and categories, other users, other candidates."""
    interest, given = interest_in(form).eval(), given_of()
    before, _ = interest(given.events, given.candidates, given.batch)
    layout = given.shown.candidate_layout
    for candidate in range(0, sum(COUNTS), 3):
        first, end = int(layout.first_event[candidate]), int(layout.history_end[candidate])
        later = torch.ones(sum(LENGTHS), dtype=torch.bool)
        later[first : first + end] = False
        other = torch.arange(sum(COUNTS)) != candidate
        changed = Given(
            replace(
                given.shown,
                times=torch.where(later, given.shown.times + 10**6, given.shown.times),
                candidate_times=torch.where(other, given.shown.candidate_times + 10**7, given.shown.candidate_times),
            ),
            torch.where(later[:, None], 5.0 * given.events.flip(0) + 1.0, given.events),
            torch.where(other[:, None], 3.0 * given.candidates.flip(0) - 1.0, given.candidates),
            torch.where(later, 1, given.event_categories),
            torch.where(other, 2, given.candidate_categories),
        )
        after, _ = interest(changed.events, changed.candidates, changed.batch)
        assert torch.equal(after[candidate], before[candidate])
        assert not torch.equal(after[other], before[other])


@pytest.mark.parametrize("form", FORMS)
def test_every_weight_has_a_gradient_and_initial_values_come_from_the_seed(form):
    interest, given = interest_in(form), given_of()
    said, penalty = interest(given.events, given.candidates, given.batch)
    assert (penalty is not None) == ("penalties" in form)
    if form != "mean":  # of events as they are: nothing to learn
        (said.pow(2).sum() + (0.0 if penalty is None else penalty)).backward()
    unused = {name for name, p in interest.named_parameters() if p.grad is None or not p.grad.any()}
    assert not unused, unused

    def weights(seed: int) -> list[Tensor]:
        interest = Interest(WIDTH, MAX_HISTORY, EncoderConfig.model_validate(FORMS[form][0]), interest_config(form))
        interest.initialize(torch.Generator().manual_seed(seed))
        return [p.detach().clone() for p in interest.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(weights(3), weights(3), strict=True))


def interest_config(form: str) -> InterestConfig:
    return InterestConfig.model_validate(FORMS[form][1])


def test_din_is_the_weighted_sum_of_its_paper():
    """Compare with sum over j of a(h_j, c) h_j (Zhou et al. 2018, equation 3), a the network of [h; c; h - c; h * c]."""
    interest, given = interest_in("DIN", torch.float64).eval(), given_of(torch.float64)
    unit, layout = interest.attention.unit, given.shown.candidate_layout
    expected = []
    for number, (first, end) in enumerate(zip(layout.first_event.tolist(), layout.history_end.tolist(), strict=True)):
        total, candidate = torch.zeros(WIDTH, dtype=torch.float64), given.candidates[number]
        for event in given.events[first : first + end]:
            parts = (event, candidate, event - candidate, event * candidate)
            hidden = sum(unit.weight[0, place] @ part for place, part in enumerate(parts)) + unit.bias[0]
            total = total + (unit.out[0] @ unit.activations[0](hidden[None])[0] + unit.out_bias[0]) * event
        expected.append(total)
    said, _ = interest(given.events, given.candidates, given.batch)
    torch.testing.assert_close(said, torch.stack(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search": {"kind": "category"}}, "needs a feature of items"),
        ({"search": {"kind": "similarity", "feature": "topic"}}, "no other kind has one"),
        ({"kind": "encoder", "search": {"kind": "similarity"}}, "nothing to narrow"),
        ({"attention": {"mask": "bidirectional"}}, "earlier events only"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        InterestConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "differs between the impressions"),
        ({"kind": "bert4rec", "positions": "none"}, "information from later events"),
        ({"kind": "two_tower", "positions": "none"}, "next-item models"),
        ({"output_head": "gelu", "positions": "none"}, "next-item models"),
    ],
)
def test_encoders_that_would_tell_the_future_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        check_encoder(EncoderConfig.model_validate(settings))


def test_a_model_without_history_has_no_interest():
    config = InterestConfig(kind="none")
    assert interest_of(WIDTH, MAX_HISTORY, EncoderConfig(), config) is None
    assert not config.uses_time
