"""The next-item model as a whole: no target sees its future, each id gets its own vector, losses are what they should be."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.attention.blocks import AttentionContext
from models.batches.history_batch import HistoryBatch, build_batch
from models.config import NextItemConfig
from models.encoders.config import EncoderConfig
from models.features.catalogue import Catalogue
from models.next_item.model import NextItemModel
from models.objectives import loss
from models.objectives.config import FullSoftmaxConfig, SampledSoftmaxConfig
from models.tables import TableSpec
from sharding.tables.initialize import initialize_tables

NUM_ROWS, WIDTH, MAX_HISTORY = 30, 8, 20
NEGATIVES = np.asarray([3, 7, 7, 12, 29, 1])
FULL, SAMPLED = FullSoftmaxConfig(), SampledSoftmaxConfig(num_negatives=6)
OBJECTIVES = [FULL, SAMPLED, FullSoftmaxConfig(normalize=True, temperature=0.1)]


# Every kind of encoder that no item may be masked for; times are places, so biases are of positions.
KINDS = ["sasrec", "ligr", "hstu", "fuxi_alpha", "two_tower"]


def make_model(objective=FULL, seed: int = 1, kind: str = "sasrec") -> NextItemModel:
    bias = {"bias": "position"} if kind in ("hstu", "fuxi_alpha") else {}
    encoder = EncoderConfig.model_validate({"kind": kind, "dropout": 0.0, "attention": {"num_heads": 2, **bias}})
    config = NextItemConfig(max_history=MAX_HISTORY, encoder=encoder, objective=objective)
    model = NextItemModel(config, [TableSpec("item", NUM_ROWS, WIDTH)], torch.device("cpu"))
    model.encoder.initialize(torch.Generator().manual_seed(seed))
    initialize_tables(model, seed, {"item": 1.0})
    with torch.no_grad():  # small initial weights would hide attention behind the residual path
        for parameter in model.encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return model


def training_batch(sequences: list[list[int]], objective=FULL) -> HistoryBatch:
    """Return a batch: inputs are all events but the last, targets all but the first; an empty sequence is an empty history."""
    inputs, targets = [s[:-1] for s in sequences], [s[1:] for s in sequences]
    sampled = isinstance(objective, SampledSoftmaxConfig)
    return build_batch(
        np.arange(len(sequences)),
        np.concatenate(([0], np.cumsum([len(i) for i in inputs]))).astype(np.int64),
        np.asarray([item for i in inputs for item in i], dtype=np.int64),
        np.asarray([item for t in targets for item in t], dtype=np.int64),
        NEGATIVES if sampled else np.zeros(0, dtype=np.int64),
        Catalogue(NUM_ROWS, NUM_ROWS),
        not sampled,
    )


def history_batch(histories: list[list[int]]) -> HistoryBatch:
    nothing = np.zeros(0, dtype=np.int64)
    offsets = np.concatenate(([0], np.cumsum([len(h) for h in histories]))).astype(np.int64)
    items = np.asarray([item for h in histories for item in h], dtype=np.int64)
    return build_batch(
        np.arange(len(histories)), offsets, items, nothing, nothing, Catalogue(NUM_ROWS, NUM_ROWS), False
    )


def encoded(model: NextItemModel, batch: HistoryBatch) -> Tensor:
    vectors = model.look_up(batch.items)["item"][batch.history_index]
    return model.encoder(vectors, AttentionContext(batch.layout))[0]


def random_sequences(seed: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(1, NUM_ROWS, size=length).tolist() for length in (9, 0, 2, 20, 1, 6)]


@pytest.fixture
def losses_of(monkeypatch):
    """Return the loss of every target on its own: the objectives replaced by plain ones that do not sum."""
    kept: list[Tensor] = []

    def full(user_ND, item_CD, target_N, temperature, label_smoothing, kernels):
        kept.append(F.cross_entropy(user_ND @ item_CD.T / temperature, target_N, reduction="none"))
        return kept[-1].sum()

    def sampled(sample, kernels):
        hit_NC = sample.target_ids[:, None] == sample.negative_ids
        positive_N = (sample.users * sample.positives).sum(dim=1, keepdim=True)
        negative_NC = (sample.users @ sample.negatives.T).masked_fill(hit_NC, float("-inf"))
        kept.append(-torch.cat((positive_N, negative_NC), dim=1).log_softmax(dim=1)[:, 0])
        return kept[-1].sum()

    def losses(model: NextItemModel, batch: HistoryBatch) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(loss, "softmax_cross_entropy", full)
            patch.setattr(loss, "sampled_softmax_cross_entropy", sampled)
            model.loss(model.look_up(batch.items), batch)
        return kept.pop()

    return losses


# Point-in-time correctness


@pytest.mark.parametrize(
    ("kind", "objective"), [("sasrec", o) for o in OBJECTIVES] + [(kind, FULL) for kind in KINDS[1:]], ids=str
)
@pytest.mark.parametrize("sequence", [0, 3])
def test_no_target_sees_its_own_future(losses_of, kind, objective, sequence):
    """Replace the events of one history from the t-th on: all that was learned and encoded before t stays, bit by bit."""
    model, sequences = make_model(objective, kind=kind), random_sequences(2)
    batch = training_batch(sequences, objective)
    before, losses_before = encoded(model, batch), losses_of(model, batch)
    assert losses_before.numel() == batch.target_ids.numel()
    start, end = batch.layout.offsets[sequence : sequence + 2].tolist()
    length = len(sequences[sequence])
    for t in range(1, length):
        changed = [list(s) for s in sequences]
        changed[sequence][t:] = [1 + item % (NUM_ROWS - 1) for item in changed[sequence][t:]]
        other = training_batch(changed, objective)
        after, losses_after = encoded(model, other), losses_of(model, other)
        same = torch.ones(before.shape[0], dtype=torch.bool)
        same[start + t : end] = False
        assert torch.equal(after[same], before[same])
        # Input i learns event i + 1, so the loss of input t - 1 is the first that may change.
        same[start + t - 1] = False
        assert torch.equal(losses_after[same], losses_before[same])
        assert not torch.equal(losses_after[start + t - 1], losses_before[start + t - 1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoded_event_is_that_of_its_prefix_alone(kind):
    model, sequence = make_model(kind=kind), random_sequences(3)[3]
    whole = encoded(model, history_batch([sequence]))
    for length in range(1, len(sequence) + 1):
        batch = history_batch([sequence[:length]])
        prefix = model.user_vectors(model.look_up(batch.items), batch)
        torch.testing.assert_close(prefix[0], whole[length - 1], rtol=1e-4, atol=1e-5)


# Users


def test_the_vector_of_an_empty_history_is_zero():
    model = make_model()
    batch = history_batch([[], [4, 5], [], [6], []])
    users = model.user_vectors(model.look_up(batch.items), batch)
    assert users.shape == (5, WIDTH)
    assert [bool(u.any()) for u in users] == [False, True, False, True, False]


def test_a_users_vector_is_that_of_the_whole_history_in_any_batch():
    model, histories = make_model(), random_sequences(6)
    batch = history_batch(histories)
    users = model.user_vectors(model.look_up(batch.items), batch)
    for user, history in zip(users, histories, strict=True):
        alone = history_batch([history])
        expected = model.user_vectors(model.look_up(alone.items), alone)[0]
        torch.testing.assert_close(user, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("histories", [[], [[]], [[], []]])
def test_a_batch_without_events_has_zero_vectors(histories):
    model = make_model()
    batch = history_batch(histories)
    users = model.user_vectors(model.look_up(batch.items), batch)
    assert torch.equal(users, torch.zeros(len(histories), WIDTH))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_a_batch_without_targets_has_zero_loss_and_can_be_differentiated(objective):
    model = make_model(objective)
    batch = training_batch([[]], objective)
    rows = model.look_up(batch.items)["item"].detach().requires_grad_()
    loss = model.loss({"item": rows}, batch)
    loss.backward()
    assert loss.item() == 0.0
    assert rows.grad is None or not rows.grad.any()


def test_normalised_models_score_by_cosine():
    model = make_model(FullSoftmaxConfig(normalize=True))
    batch = history_batch([[4, 5, 6], [7]])
    users = model.user_vectors(model.look_up(batch.items), batch)
    request = Catalogue(NUM_ROWS, NUM_ROWS).known
    items = model.item_vectors(model.look_up(request), request)
    torch.testing.assert_close(users.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(items.norm(dim=1), torch.ones(NUM_ROWS))


# Batches and lookups


@pytest.mark.parametrize("objective", [FULL, SAMPLED], ids=str)
def test_every_index_of_a_batch_leads_to_its_ids_vector(objective):
    model, sequences = make_model(objective), random_sequences(4)
    batch = training_batch(sequences, objective)
    rows = model.look_up(batch.items)["item"]
    table = next(model.tables.parameters())
    inputs = torch.tensor([item for s in sequences for item in s[:-1]])
    targets = torch.tensor([item for s in sequences for item in s[1:]])
    assert torch.equal(rows[batch.history_index], table[inputs])
    assert torch.equal(rows[batch.target_index], table[targets])
    assert torch.equal(batch.target_ids, targets)
    if isinstance(objective, SampledSoftmaxConfig):
        assert torch.equal(rows[batch.negative_index], table[torch.from_numpy(NEGATIVES)])
        assert batch.lookup_ids.unique().numel() == batch.lookup_ids.numel()  # nothing is sent twice
        assert set(batch.lookup_ids.tolist()) == {*inputs.tolist(), *targets.tolist(), *NEGATIVES.tolist()}
    else:
        assert batch.lookup_ids.tolist() == list(range(NUM_ROWS))
        assert batch.negative_index.numel() == 0


def test_the_full_loss_is_the_cross_entropy_over_all_known_items():
    """The row of unknown items is no candidate."""
    model, sequences = make_model(), random_sequences(5)
    batch = training_batch(sequences)
    table = next(model.tables.parameters())
    expected = F.cross_entropy(encoded(model, batch) @ table[1:].T, batch.target_ids - 1, reduction="sum")
    torch.testing.assert_close(model.loss(model.look_up(batch.items), batch), expected)


def test_the_sampled_loss_leaves_out_negatives_that_are_the_target():
    model = make_model(SAMPLED)
    batch = training_batch([[4, 7, 12], [5, 9]], SAMPLED)
    table, users = next(model.tables.parameters()), encoded(model, batch)
    expected = torch.zeros(())
    for user, target in zip(users, [7, 12, 9], strict=True):
        candidates = [target, *(n for n in NEGATIVES.tolist() if n != target)]
        expected = expected - (table[candidates] @ user).log_softmax(dim=0)[0]
    torch.testing.assert_close(model.loss(model.look_up(batch.items), batch), expected)


@pytest.mark.parametrize("objective", [FULL, SAMPLED], ids=str)
def test_targets_that_the_training_part_does_not_know_are_not_learned(objective):
    """Rare items, below a minimum count: they stay in histories, as unknown ones, and no loss is taken at them."""
    model = make_model(objective)
    batch = training_batch([[4, 0, 12, 9], [0, 0], [7, 8]], objective)
    assert batch.target_ids.tolist() == [12, 9, 8]
    assert batch.target_event is not None
    users, table = encoded(model, batch)[batch.target_event], next(model.tables.parameters())
    expected = torch.zeros(())
    for user, target in zip(users, [12, 9, 8], strict=True):
        negatives = NEGATIVES.tolist() if isinstance(objective, SampledSoftmaxConfig) else range(1, NUM_ROWS)
        candidates = [target, *(n for n in negatives if n != target)]
        expected = expected - (table[candidates] @ user).log_softmax(dim=0)[0]
    torch.testing.assert_close(model.loss(model.look_up(batch.items), batch), expected)
