"""Labels: masks and products against plain formulas, and probabilities of the full log learned from a sampled one."""

import math

import pytest
import torch
from torch import Tensor

from models.ranking.config import LabelConfig, RankingConfig, learned_labels
from models.ranking.labels import Labels, Rates, both, rate_logits

USER, NUM_USERS = torch.tensor([0] * 4 + [2] + [3] * 7), 4
LABELS = {
    "click": torch.tensor([1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 1.0]),
    "buy": torch.tensor([1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1.0]),
    "return": torch.tensor([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1.0]),
}
# Names are not in the order of their conditions.
CHAIN = {
    "return": LabelConfig(defined_when="buy", entire_space=True),
    "click": LabelConfig(),
    "buy": LabelConfig(defined_when="click", entire_space=True),
}
GIVEN = {"buy": LabelConfig(defined_when="click"), "click": LabelConfig(weight=0.3)}


def raw(num_labels: int) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(12, num_labels, dtype=torch.float64, generator=random)


def bce(logits: Tensor, labels: Tensor) -> Tensor:
    p = torch.sigmoid(logits)
    return -(labels * p.log() + (1 - labels) * (1 - p).log()).sum()


def test_a_product_of_probabilities_is_a_logit_again():
    a, b = raw(2).unbind(dim=1)
    torch.testing.assert_close(torch.sigmoid(both(a, b)), torch.sigmoid(a) * torch.sigmoid(b))
    far = both(torch.tensor([90.0, -90.0, 90.0, 0.0]), torch.tensor([90.0, -90.0, -90.0, 90.0]))
    torch.testing.assert_close(far, torch.tensor([90.0 - math.log(2), -180.0, -90.0, 0.0]))
    assert torch.autograd.gradcheck(both, (a.clone().requires_grad_(), b.clone().requires_grad_()))


def test_a_label_given_another_is_learned_only_where_that_is_positive():
    logits = raw(2)
    labels = Labels(GIVEN)
    assert torch.equal(labels.logits(logits), logits)
    clicked = LABELS["click"] > 0
    expected = bce(logits[clicked, 0], LABELS["buy"][clicked]) + 0.3 * bce(logits[:, 1], LABELS["click"])
    torch.testing.assert_close(labels.loss(logits, LABELS, USER, NUM_USERS), expected)
    _, defined = labels.targets(LABELS)
    assert torch.equal(defined, torch.stack((clicked, torch.ones_like(clicked)), dim=1))


def test_in_the_entire_space_products_are_learned_on_all_impressions():
    logits, labels = raw(3), Labels(CHAIN)
    p_return, p_click, p_buy = torch.sigmoid(logits).unbind(dim=1)
    products = torch.stack((p_click * p_buy * p_return, p_click, p_click * p_buy), dim=1)
    torch.testing.assert_close(torch.sigmoid(labels.logits(logits)), products)
    expected = sum(bce(torch.logit(products[:, t]), LABELS[name]) for t, name in enumerate(labels.names))
    torch.testing.assert_close(labels.loss(logits, LABELS, USER, NUM_USERS), expected)
    assert labels.targets(LABELS)[1].all()


def test_a_product_given_a_condition_of_the_logs_is_learned_where_that_holds():
    labels = Labels({"buy": LabelConfig(defined_when="click"), "return": CHAIN["return"]})
    positive, defined = labels.targets(LABELS)
    clicked = LABELS["click"] > 0
    assert torch.equal(defined, torch.stack((clicked, clicked), dim=1))
    assert torch.equal(positive[:, 1], (LABELS["return"] > 0) & (LABELS["buy"] > 0) & clicked)


@pytest.mark.parametrize("loss", ["bce", "focal", "pairwise", "listwise"])
def test_gradients_and_no_dependence_between_users(loss):
    labels = Labels({"click": LabelConfig(loss=loss), "buy": LabelConfig(loss=loss, defined_when="click", weight=2.0)})
    logits = raw(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda given: labels.loss(given, LABELS, USER, NUM_USERS), (logits,))
    whole, pieces = labels.loss(logits, LABELS, USER, NUM_USERS), []
    for user in range(NUM_USERS):
        own = user == USER
        pieces.append(labels.loss(logits[own], {name: label[own] for name, label in LABELS.items()}, 0 * USER[own], 1))
    torch.testing.assert_close(torch.stack(pieces).sum(), whole)


def test_ranking_losses_have_a_share_of_cross_entropy():
    logits = raw(1)
    plain, mixed, alone = (
        Labels({"click": LabelConfig(loss=loss, bce_share=share)}).loss(logits, LABELS, USER, NUM_USERS)
        for loss, share in (("bce", 0.5), ("pairwise", 0.25), ("pairwise", 0.0))
    )
    torch.testing.assert_close(mixed, 0.25 * plain + 0.75 * alone)


# Negative sampling: two labels, of which `buy` presupposes `click`; both known, for groups of similar impressions.

KEPT = 0.1
CLICK, BUY_GIVEN_CLICK = torch.tensor([0.05, 0.3]).double(), torch.tensor([0.2, 0.5]).double()


def expected_log(kept: float) -> tuple[dict[str, Tensor], Tensor]:
    """Return every kind of impression of both groups, and how many of each the log has: labels and weights, exactly."""
    labels = {"click": torch.tensor([0, 1, 1, 0, 1, 1.0]), "buy": torch.tensor([0, 0, 1, 0, 0, 1.0])}
    none, click, buy = (1 - CLICK) * kept, CLICK * (1 - BUY_GIVEN_CLICK), CLICK * BUY_GIVEN_CLICK
    return labels, torch.stack((none, click, buy), dim=1).flatten()


@pytest.mark.parametrize("correction", ["offset", "weight"])
@pytest.mark.parametrize("entire_space", [False, True])
def test_probabilities_learned_from_a_sampled_log_are_those_of_the_full_one(correction, entire_space):
    """Minimise the expected loss over a log that has a tenth of the impressions without a label."""
    configs = {"click": LabelConfig(), "buy": LabelConfig(defined_when="click", entire_space=entire_space)}
    labels = Labels(configs, KEPT, correction)
    logs, counts = expected_log(KEPT)
    logits = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-16
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = logits.new_zeros(())
        for row in range(6):
            one = {name: label[row : row + 1] for name, label in logs.items()}
            group = logits[row // 3][None]
            loss = loss + counts[row] * labels.loss(group, one, torch.tensor([0]), 1)
        loss.backward()
        return loss

    optimizer.step(closure)
    actual = torch.sigmoid(labels.logits(logits.detach()))
    buy = CLICK * BUY_GIVEN_CLICK if entire_space else BUY_GIVEN_CLICK
    torch.testing.assert_close(actual, torch.stack((CLICK, buy), dim=1), rtol=1e-4, atol=1e-6)
    uncorrected = torch.sigmoid(Labels(configs).logits(labels._as_sampled(logits.detach())))
    if correction == "offset":  # what the sampled log says itself
        sampled = CLICK / (CLICK + KEPT * (1 - CLICK))
        torch.testing.assert_close(uncorrected[:, 0], sampled, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("correction", ["offset", "weight"])
@pytest.mark.parametrize("entire_space", [False, True])
def test_the_towers_begin_where_the_loss_is_least_without_telling_impressions_apart(correction, entire_space):
    configs = {"click": LabelConfig(), "buy": LabelConfig(defined_when="click", entire_space=entire_space)}
    labels = Labels(configs, KEPT, correction)
    logs = {name: label.repeat(1000) for name, label in LABELS.items()}
    rates = Rates(12000, {name: int(label.sum()) for name, label in logs.items()})

    def loss(shift: float, label: int) -> float:
        logits = rate_logits(labels, rates).double()
        logits[label] += shift
        return labels.loss(logits.expand(12000, 2), logs, torch.zeros(12000, dtype=torch.int64), 1).item()

    for label in (0, 1):
        assert loss(0.0, label) < min(loss(-0.01, label), loss(0.01, label))


def test_rates_of_labels_that_never_or_always_occur_are_finite():
    labels = Labels({"click": LabelConfig(), "buy": LabelConfig(defined_when="click")})
    for positives in ({"click": 0, "buy": 0}, {"click": 10, "buy": 10}, {"click": 3, "buy": 5}):
        assert rate_logits(labels, Rates(10, positives)).isfinite().all()


# Settings


def test_all_labels_of_the_logs_are_learned_unless_some_are_named():
    assert learned_labels(RankingConfig(), ["click", "like"]) == {"click": LabelConfig(), "like": LabelConfig()}
    named = RankingConfig(labels={"like": LabelConfig(weight=2.0)})
    assert learned_labels(named, ["click", "like"]) == named.labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"clik": {}}, "no label 'clik' in the logs; there are click, buy"),
        ({"buy": {"defined_when": "view"}}, r"labels\.buy\.defined_when: there is no label 'view'"),
    ],
)
def test_labels_that_the_logs_do_not_have_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        learned_labels(RankingConfig.model_validate({"labels": labels}), ["click", "buy"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"buy": {"entire_space": True}}, "needs defined_when"),
        ({"buy": {"entire_space": True, "defined_when": "click"}}, "is not learned; add labels.click"),
        ({"a": {"defined_when": "b"}, "b": {"defined_when": "a"}}, "cycle: a -> b -> a"),
        ({"a": {"defined_when": "a"}}, "cycle: a -> a"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        RankingConfig.model_validate({"labels": labels})
