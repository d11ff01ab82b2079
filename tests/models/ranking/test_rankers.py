"""Every published ranker as a whole: blind to what is later, users and candidates on their own; what a search finds teaches."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.layers.running_statistics import sums_of, update
from models.ranking.config import RankingConfig, learned_labels
from models.ranking.interest import interest_of
from models.ranking.model import RankingModel
from models.ranking.presets import PRESETS
from sharding.tables.initialize import initialize_tables
from tests.models.ranking.test_model import (
    INPUTS,
    ITEM_FEATURES,
    LABELS,
    NUM_ITEMS,
    TABLES,
    WIDTH,
    User,
    batch_of,
    logits_of,
    looked_up,
    loss_of,
    random_users,
)

NARROW = {"encoder": {"dropout": 0.0, "attention": {"num_heads": 2}}, "experts": {"hidden": [6]}}
SEARCH = {"attention": {"num_heads": 2}, "search": {"num_found": 2}}
RANKERS = {
    "logistic": {},
    "pooled": NARROW,
    "din": NARROW,
    "bst": NARROW,
    "hstu": NARROW,
    "sim": {**NARROW, "interest": SEARCH},
    "sim by category": {
        **NARROW,
        "interest": {**SEARCH, "search": {"kind": "category", "feature": "tag", "num_found": 2}},
    },
    "hstu, penalties": {**NARROW, "encoder": {"dropout": 0.0, "attention": {"penalty": 0.1}}},
}
WITH_HISTORY = [name for name in RANKERS if name != "logistic"]


def ranker(name: str) -> RankingModel:
    kind = name.split(",")[0].split(" ")[0]
    config = RankingConfig.model_validate({"kind": kind, "max_history": 20, **RANKERS[name]})
    interest = interest_of(WIDTH, config.max_history, config.encoder, config.interest)
    labels = learned_labels(config, LABELS)
    model = RankingModel(config, labels, TABLES, torch.device("cpu"), interest, ITEM_FEATURES, INPUTS)
    model.initialize(torch.Generator().manual_seed(1))
    initialize_tables(model, 1, {table.name: 1.0 for table in TABLES})
    with torch.no_grad():  # what starts at zero would hide what it does
        for number, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(0.2 * noise)
    return model.double()


def test_every_published_ranker_is_tested():
    assert {name.split(",")[0].split(" ")[0] for name in RANKERS} == PRESETS.keys()


@pytest.mark.parametrize("name", WITH_HISTORY)
def test_events_at_or_after_a_candidates_time_change_nothing(name):
    """Bit for bit, be it another item or another time at which it happens; before it, it does."""
    model, user = ranker(name).eval(), random_users()[0]
    before, changed = logits_of(model, [user]), 0
    for number, one in enumerate(user.shown):
        later = tuple(
            ((item % (NUM_ITEMS - 1)) + 1, time + 10 * one[1], 3 - tab) if time >= one[1] else (item, time, tab)
            for item, time, tab in user.events
        )
        after = logits_of(model, [replace(user, events=later)])
        assert torch.equal(after[number], before[number])
        changed += not torch.equal(after, before)
    assert changed > 0


@pytest.mark.parametrize("name", RANKERS)
def test_users_and_candidates_do_not_see_each_other(name):
    """In values and gradients: one history for all of its impressions, or a copy of it for each."""
    model, users = ranker(name).eval(), random_users()
    alone = [replace(user, shown=(one,)) for user in users for one in user.shown]
    torch.testing.assert_close(torch.cat([logits_of(model, [user]) for user in alone]), logits_of(model, users))
    gradients: list[list[Tensor]] = []
    for batches in ([users], [[user] for user in alone]):
        model.zero_grad()
        if "penalties" in name:  # of events, which are weighed in each batch that they are in
            sum(logits_of(model, batch).double().pow(2).sum() for batch in batches).backward()
        else:
            sum(loss_of(model, batch) for batch in batches).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5 if "penalties" in name else 1e-8)


@pytest.mark.parametrize("name", RANKERS)
@pytest.mark.parametrize(
    "users", [[], random_users(1, ((0, 0),)), random_users(1, ((3, 0), (0, 0)))], ids=["no", "empty", "unseen"]
)
def test_without_candidates_the_loss_is_zero_and_can_be_differentiated(name, users):
    model = ranker(name).eval()
    loss = loss_of(model, users)
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize("name", RANKERS)
def test_candidates_without_any_history_have_logits(name):
    assert logits_of(ranker(name), random_users(1, ((0, 3), (0, 1)))).isfinite().all()


@pytest.mark.parametrize("name", WITH_HISTORY)
def test_the_history_reaches_every_table_and_weight(name):
    model, users = ranker(name), random_users(4, ((9, 6),) * 4)
    batch = batch_of(users)
    rows = {table: value.detach().requires_grad_() for table, value in looked_up(model, batch).items()}
    assert torch.isfinite(loss_of(model, users))
    logits_of(model, users).sum().backward()
    dense = {n: p for n, p in model.named_parameters() if not n.startswith("tables")}
    unused = {n for n, p in dense.items() if p.grad is None or not p.grad.any()}
    assert not unused, unused
    assert rows.keys() == {table.name for table in TABLES}


def liked_before(seed: int) -> list[User]:
    """Return users of four events; a candidate is clicked if an event before it has its tag, which the history alone tells."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> list[int]:
        return torch.randint(1, NUM_ITEMS, (count,), generator=generator).tolist()

    users = []
    for _ in range(24):
        events = tuple((item, 100 * number, 1) for number, item in enumerate(draw(4)))
        tags = {item % 5 for item, _, _ in events}
        shown = tuple((item, 900, 1, 0.0, 1, int(item % 5 in tags), 0) for item in draw(6))
        users.append(User(events, shown, 1, 0.0))
    return users


def test_a_search_by_category_learns_from_categories():
    model = ranker("sim by category").train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for step in range(100):
        users = liked_before(step)
        optimizer.zero_grad()
        loss = loss_of(model, users) / (24 * 6)
        loss.backward()
        optimizer.step()
        update(model, sums_of(model))
        losses.append(loss.item())
    assert losses[-1] < 0.1 < 0.6 < losses[0]
