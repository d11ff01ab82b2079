"""The ranking model as a whole: what it looks up, that nobody sees later events or other candidates, and users on their own."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.attention.candidates import lay_out_candidates
from models.batches.jagged import layout_of
from models.features.inputs import Inputs
from models.features.items import Catalogue, IdColumn
from models.features.time import Clock
from models.features.unique import distinct_ids
from models.features.values import InputFeature
from models.layers.running_statistics import sums_of, update
from models.ranking.batch import RankingBatch, Told, with_inputs
from models.ranking.config import RankingConfig, learned_labels
from models.ranking.labels import Rates
from models.ranking.model import RankingModel
from models.tables import TableSpec
from sharding.tables.initialize import initialize_tables

NUM_ITEMS, WIDTH = 12, 4
TABLES = [
    TableSpec("item", NUM_ITEMS, WIDTH),
    TableSpec("tag", 6, WIDTH),
    TableSpec("city", 5, 3),
    TableSpec("tab", 4, 2),
]
INPUTS = Inputs(
    events=(InputFeature("tab", "tab", 2),),
    users=(InputFeature("city", "city", 3), InputFeature("age", None, 1)),
    clock=Clock(1, ("gap", "hour")),
    candidates=(InputFeature("tab", "tab", 2), InputFeature("slot", None, 1), InputFeature("seed", "item", WIDTH)),
)
ITEM_FEATURES = (InputFeature("tag", "tag", WIDTH), InputFeature("price", None, 1))
LABELS = ("click", "buy")
SETTINGS = {
    "logistic": {"experts": {"hidden": []}},
    "deep": {"crossing": {"kind": "dcn_v2", "rank": 3}, "experts": {"hidden": [6, 5], "activation": "dice"}},
    "many": {
        "crossing": {"kind": "fm", "rank": 3},
        "experts": {"kind": "ple", "hidden": [6], "tower": [4], "activation": "prelu"},
        "labels": {
            "click": {"loss": "pairwise"},
            "buy": {"defined_when": "click", "entire_space": True, "weight": 2.0},
        },
    },
}


@dataclass(frozen=True)
class User:
    """events: (item, time, tab); shown: (item, time, tab, slot, seed item, click, buy), in the order of time."""

    events: tuple[tuple[int, int, int], ...]
    shown: tuple[tuple[int, int, int, float, int, int, int], ...]
    city: int
    age: float


def catalogue() -> Catalogue:
    values = np.arange(NUM_ITEMS) % 5 + 1
    return Catalogue(
        NUM_ITEMS,
        NUM_ITEMS,
        features=ITEM_FEATURES,
        columns={
            "tag": IdColumn(values, np.arange(NUM_ITEMS + 1)),
            "price": np.linspace(-1, 1, NUM_ITEMS, dtype=np.float32)[:, None],
        },
        inputs=INPUTS,
    )


def batch_of(users: list[User]) -> RankingBatch:
    def column(place: int, of: str, dtype=np.int64) -> np.ndarray:
        return np.asarray([row[place] for user in users for row in getattr(user, of)], dtype)

    def offsets(of: str) -> np.ndarray:
        return np.concatenate(([0], np.cumsum([len(getattr(user, of)) for user in users]))).astype(np.int64)

    lookup, (history, candidate) = distinct_ids(column(0, "events"), column(0, "shown"))
    ends = [sum(event[1] < shown[1] for event in user.events) for user in users for shown in user.shown]
    batch = RankingBatch(
        row_ids=torch.arange(len(users)),
        layout=layout_of(offsets("events")),
        candidate_layout=lay_out_candidates(offsets("events"), offsets("shown"), np.asarray(ends), 20),
        lookup_ids=torch.from_numpy(lookup),
        items=catalogue().request(lookup),
        history_index=torch.from_numpy(history),
        candidate_offsets=torch.from_numpy(offsets("shown")),
        history_of=torch.from_numpy(np.repeat(np.arange(len(users)), np.diff(offsets("shown")))),
        candidate_index=torch.from_numpy(candidate),
        candidate_ids=torch.from_numpy(column(0, "shown")),
        shown_at=torch.from_numpy(column(1, "shown")),
        history_end=torch.tensor(ends, dtype=torch.int64),
        labels={name: torch.from_numpy(column(5 + k, "shown", np.float32)) for k, name in enumerate(LABELS)},
    )
    told = Told(
        {"tab": column(2, "events", np.int32)},
        {"city": np.asarray([u.city for u in users], np.int64), "age": np.asarray([u.age for u in users], np.float32)},
        {"tab": column(2, "shown", np.int32), "slot": column(3, "shown", np.float32), "seed": column(4, "shown")},
        column(1, "events"),
    )
    return with_inputs(batch, catalogue(), told)


def random_users(seed: int = 0, counts=((6, 4), (0, 2), (3, 0), (1, 5), (9, 3))) -> list[User]:
    random = np.random.default_rng(seed)

    def user(num_events: int, num_shown: int) -> User:
        times = np.sort(random.integers(0, 5000, num_events))
        shown_at = np.sort(random.integers(0, 6000, num_shown))
        clicks = random.integers(0, 2, num_shown)
        return User(
            tuple((int(random.integers(1, NUM_ITEMS)), int(t), int(random.integers(0, 4))) for t in times),
            tuple(
                (
                    *(int(random.integers(1, NUM_ITEMS)), int(t), int(random.integers(0, 4)), float(random.random())),
                    *(int(random.integers(0, NUM_ITEMS)), int(click), int(click and random.random() < 0.5)),
                )
                for t, click in zip(shown_at, clicks, strict=True)
            ),
            int(random.integers(0, 5)),
            float(random.normal()),
        )

    return [user(*sizes) for sizes in counts]


class MeanInterest(nn.Module):
    """The average of the visible events, times the candidate: an interest as simple as can be."""

    width = WIDTH

    def initialize(self, generator: torch.Generator) -> None:
        pass

    def forward(self, events_ND: Tensor, candidates_MD: Tensor, batch: RankingBatch) -> tuple[Tensor, None]:
        sums_ND = torch.cat((events_ND.new_zeros(1, WIDTH), events_ND.cumsum(dim=0)))
        first_M = batch.layout.offsets[batch.history_of]
        seen_MD = sums_ND[first_M + batch.history_end] - sums_ND[first_M]
        return seen_MD / batch.history_end.clamp(min=1)[:, None] * candidates_MD, None


def model_of(settings: str, with_interest: bool = True, **more) -> RankingModel:
    config = RankingConfig.model_validate(SETTINGS[settings])
    interest = MeanInterest() if with_interest else None
    labels = learned_labels(config, LABELS)
    model = RankingModel(config, labels, TABLES, torch.device("cpu"), interest, ITEM_FEATURES, INPUTS, **more)
    model.initialize(torch.Generator().manual_seed(1))
    initialize_tables(model, 1, {table.name: 1.0 for table in TABLES})
    return model.double()


def looked_up(model: RankingModel, batch: RankingBatch) -> dict[str, Tensor]:
    return {table: rows.double() for table, rows in model.look_up(batch.items).items()}


def logits_of(model: RankingModel, users: list[User]) -> Tensor:
    batch = batch_of(users)
    return model.logits(looked_up(model, batch), doubled(batch))


def loss_of(model: RankingModel, users: list[User]) -> Tensor:
    batch = batch_of(users)
    return model.loss(looked_up(model, batch), doubled(batch))


def doubled(batch: RankingBatch) -> RankingBatch:
    def values(result):
        return {
            name: replace(given, weight=given.weight.double(), dense=given.dense.double())
            for name, given in result.items()
        }

    owners = ("values", "events", "users", "candidates")
    return replace(
        batch, items=replace(batch.items, **{owner: values(getattr(batch.items, owner)) for owner in owners})
    )


@pytest.mark.parametrize("settings", SETTINGS)
def test_logits_have_a_column_for_each_label_and_the_loss_is_a_sum(settings):
    model, users = model_of(settings), random_users()
    logits = logits_of(model, users)
    assert logits.shape == (14, 2)
    assert logits.dtype == torch.float32
    assert model.labels == LABELS
    assert logits.unique().numel() == logits.numel()
    whole = loss_of(model, users)
    torch.testing.assert_close(whole, torch.stack([loss_of(model, [user]) for user in users]).sum())
    assert whole.item() > 0.0


@pytest.mark.parametrize("settings", SETTINGS)
def test_users_and_candidates_do_not_see_each_other(settings):
    model, users = model_of(settings), random_users()
    logits = logits_of(model, users)
    torch.testing.assert_close(logits_of(model, users[::-1]), torch.cat(list(logits.split([4, 2, 0, 5, 3])[::-1])))
    alone = [logits_of(model, [replace(user, shown=(one,))]) for user in users for one in user.shown]
    torch.testing.assert_close(torch.cat(alone), logits)


@pytest.mark.parametrize("settings", SETTINGS)
def test_events_at_or_after_a_candidates_time_change_nothing(settings):
    model, users = model_of(settings), random_users()
    (before, user), changed = (logits_of(model, users[:1]), users[0]), 0
    for number, one in enumerate(user.shown):
        later = [
            ((item % (NUM_ITEMS - 1)) + 1, time, 3 - tab) if time >= one[1] else (item, time, tab)
            for item, time, tab in user.events
        ]
        after = logits_of(model, [replace(user, events=tuple(later))])
        assert torch.equal(after[number], before[number])
        changed += not torch.equal(after, before)
    assert changed > 0


def test_every_thing_that_is_known_of_an_impression_counts():
    model, user = model_of("deep"), random_users()[0]
    before = logits_of(model, [user])[-1]
    item, time, tab, slot, seed, click, buy = user.shown[-1]
    others = {
        "item": (item % (NUM_ITEMS - 1) + 1, time, tab, slot, seed, click, buy),
        "hour": (item, time + 3600, tab, slot, seed, click, buy),
        "tab": (item, time, (tab + 1) % 3 + 1, slot, seed, click, buy),
        "slot": (item, time, tab, slot + 1, seed, click, buy),
        "seed": (item, time, tab, slot, seed % (NUM_ITEMS - 1) + 1, click, buy),
    }
    changed = {name: replace(user, shown=(*user.shown[:-1], shown)) for name, shown in others.items()}
    changed |= {"city": replace(user, city=user.city % 4 + 1), "age": replace(user, age=user.age + 1)}
    changed |= {"history": replace(user, events=user.events[1:])}
    for name, other in changed.items():
        assert not torch.allclose(logits_of(model, [other])[-1], before, rtol=1e-4), name
    labels = replace(user, shown=tuple((*one[:5], 1 - one[5], 1 - one[6]) for one in user.shown))
    assert torch.equal(logits_of(model, [labels])[-1], before)


def test_a_linear_model_is_the_formula():
    model, users = model_of("logistic", with_interest=False), random_users()
    batch = doubled(batch_of(users))
    rows = looked_up(model, batch)
    tables = {name.split(".")[-2]: weight for name, weight in model.tables.named_parameters()}
    column = catalogue().columns
    expected = []
    for user in users:
        for item, _, tab, slot, seed, *_ in user.shown:
            price = torch.tensor(column["price"][item]).double()
            tag = tables["tag"][column["tag"].values[item]]
            vector = tables["item"][item] + tag + model.items.projections["price"](price)
            city = tables["city"][user.city] if user.city else torch.zeros(3)
            of_tab = tables["tab"][tab] if tab else torch.zeros(2)
            of_seed = tables["item"][seed] if seed else torch.zeros(WIDTH)
            numbers = [torch.tensor([float(np.float32(x))]) for x in (user.age, slot)]
            expected.append(torch.cat([vector, tag, price, city, numbers[0], of_tab, numbers[1], of_seed]))
    weight, bias = model.experts.towers.weights[0].squeeze(2), model.experts.towers.biases[0].squeeze(1)
    logits = torch.stack(expected) @ weight.T + bias
    torch.testing.assert_close(model.logits(rows, batch), logits.float())
    assert model.fields.widths == {
        "item": 4,
        "item.tag": 4,
        "item.price": 1,
        "user.city": 3,
        "user.age": 1,
        "candidate.tab": 2,
        "candidate.slot": 1,
        "candidate.seed": 4,
    }


def test_each_row_is_requested_once():
    batch = batch_of(random_users())
    assert batch.items.rows.keys() == {table.name for table in TABLES}
    for rows in batch.items.rows.values():
        assert rows.unique().numel() == rows.numel()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(
    "users", [[], random_users(1, ((0, 0),)), random_users(1, ((3, 0), (0, 0)))], ids=["no", "empty", "unseen"]
)
def test_without_candidates_the_loss_is_zero_and_can_be_differentiated(settings, users):
    model = model_of(settings)
    loss = loss_of(model, users)
    loss.backward()
    assert loss.item() == 0.0
    assert logits_of(model, users).shape == (0, 2)


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradients_of_the_loss(settings):
    model, batch = model_of(settings), doubled(batch_of(random_users(2, ((3, 2), (0, 1), (2, 3)))))
    rows = {table: value.detach().requires_grad_() for table, value in looked_up(model, batch).items()}
    assert torch.autograd.gradcheck(
        lambda *given: model.loss(dict(zip(rows, given, strict=True)), batch), tuple(rows.values())
    )
    model.loss(rows, batch).backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("tables"):
            assert parameter.grad is not None, name


def test_a_model_learns_and_its_statistics_follow_the_batches():
    model, users = model_of("deep"), random_users(3, ((6, 8),) * 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = loss_of(model, users)
        loss.backward()
        optimizer.step()
        update(model, sums_of(model))
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    first = next(m for m in model.modules() if hasattr(m, "num_updates"))
    assert first.num_updates == 60


def test_logits_are_those_of_the_full_log():
    """Trained as if a tenth of the impressions without labels were kept, the loss is that of logits shifted up by log 10."""
    plain, sampled, users = model_of("logistic"), model_of("logistic", kept=0.1), random_users()
    torch.testing.assert_close(logits_of(plain, users), logits_of(sampled, users))
    with torch.no_grad():
        plain.experts.towers.biases[0].add_(np.log(10.0))
    torch.testing.assert_close(loss_of(plain, users), loss_of(sampled, users))


def test_a_new_model_is_about_as_sure_as_the_labels_are_frequent():
    rates = Rates(1000, {"click": 50, "buy": 10})
    logits = logits_of(model_of("many", rates=rates), random_users())
    expected = torch.tensor([np.log(51 / 951), np.log(51 / 951) + np.log(11 / 41)], dtype=torch.float32)
    assert ((logits.mean(dim=0) - expected).abs() < 1.5).all()
    assert (logits_of(model_of("many"), random_users()).mean(dim=0)[0] - expected[0]).abs() > 1.5
