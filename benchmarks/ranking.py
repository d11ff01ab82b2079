"""Training of rankers, in impressions per second.

Compares histories that are shared by their impressions with one copy of a history per impression, and DIN with a plain one. All
sides have the same impressions and widths. Batches are ready in memory, so that only models are compared.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from benchmarks.measure import Comparison, take_turns
from models.features.catalogue import Catalogue
from models.ranking.batch import RankingBatch
from models.ranking.config import RankingConfig, learned_labels
from models.ranking.interest import interest_of
from models.ranking.model import RankingModel
from models.ranking.reach import reach_of
from models.tables import TableSpec
from sharding.tables.initialize import initialize_tables
from trainer.data.stream.columns import stretches
from trainer.data.stream.impressions import Candidates, JaggedImpressions, ranking_batch

NUM_ITEMS, WIDTH, MAX_HISTORY = 10_000, 16, 50
NUM_USERS, BATCHES = 128, 4
UNIT, LAYERS = (64, 16), (256, 128)
CATALOGUE = Catalogue(NUM_ITEMS, NUM_ITEMS)
MODELS: dict[str, dict[str, Any]] = {
    "DIN": {
        "kind": "din",
        "interest": {"attention": {"unit_hidden": list(UNIT), "unit_activation": "relu"}},
        "experts": {"hidden": list(LAYERS), "activation": "relu"},
    },
    "HSTU": {
        "kind": "hstu",
        "encoder": {"attention": {"bias": "position", "num_heads": 2}},
        "experts": {"hidden": list(LAYERS)},
    },
}
WITH_DICE: dict[str, Any] = {
    "kind": "din",
    "interest": {"attention": {"unit_hidden": list(UNIT), "unit_activation": "dice"}},
    "experts": {"hidden": list(LAYERS), "activation": "relu"},
}


def deepctr_torch_is_here() -> bool:
    """Return whether DeepCTR-Torch is installed (`pip install --no-deps deepctr-torch`); without it the comparison is left out."""
    return find_spec("deepctr_torch") is not None


def compare(turns: int) -> Iterator[Comparison]:
    """Measure users with histories of 50 events and 5 or 20 impressions, typical of KuaiRand's users per day and per week."""
    for each in (5, 20):
        shown = [_impressions(each, seed) for seed in range(BATCHES)]
        amount = float(BATCHES * NUM_USERS * each)
        for name, settings in MODELS.items():
            ours = _work(settings, shown)
            alone = _work(settings, [impression_major(found) for found in shown])
            what = f"{name}, {each} impressions a user"
            other = "the same, a history for each impression"
            yield take_turns(what, "impressions/s", amount, ours, alone, other, turns)
            if name == "DIN":
                apart = [impression_major(found) for found in shown]
                plain = _plain_work(apart)
                yield take_turns(what, "impressions/s", amount, ours, plain, "plain PyTorch DIN, padded", turns)
                if deepctr_torch_is_here():
                    with_dice, theirs = _work(WITH_DICE, shown), _deepctr_work(apart)
                    what = f"DIN with Dice, {each} impressions a user"
                    yield take_turns(what, "impressions/s", amount, with_dice, theirs, "DeepCTR-Torch's DIN", turns)


def impression_major(found: JaggedImpressions) -> JaggedImpressions:
    """Return the same impressions, each with its own copy of the events before it."""
    shown = found.candidates
    counts = np.diff(shown.offsets)
    owner = np.repeat(np.arange(counts.size), counts)
    ends = found.offsets[owner] + shown.history_end
    starts = np.maximum(found.offsets[owner], ends - MAX_HISTORY)
    places, offsets = stretches(starts, ends)
    alone = replace(shown, offsets=np.arange(owner.size + 1), history_end=ends - starts)
    return JaggedImpressions(found.row_ids[owner], offsets, found.items.take(places), alone)


def _impressions(each: int, seed: int) -> JaggedImpressions:
    generator = np.random.default_rng([each, seed])
    num = NUM_USERS * each
    candidates = Candidates(
        offsets=np.arange(NUM_USERS + 1) * each,
        items=generator.integers(1, NUM_ITEMS, num).astype(np.int32),
        times=np.tile(np.arange(each), NUM_USERS),
        history_end=np.full(num, MAX_HISTORY),
        place=np.tile(np.arange(each), NUM_USERS),
        labels={"click": generator.integers(0, 2, num).astype(np.float32)},
        features={},
    )
    items = generator.integers(1, NUM_ITEMS, NUM_USERS * MAX_HISTORY).astype(np.int32)
    return JaggedImpressions(np.arange(NUM_USERS), np.arange(NUM_USERS + 1) * MAX_HISTORY, items, candidates)


def _work(settings: dict[str, Any], shown: list[JaggedImpressions]) -> Callable[[], object]:
    config = RankingConfig.model_validate({"max_history": MAX_HISTORY, **settings})
    interest = interest_of(WIDTH, MAX_HISTORY, config.encoder, config.interest)
    tables = [TableSpec("item", NUM_ITEMS, WIDTH)]
    model = RankingModel(config, learned_labels(config, ("click",)), tables, torch.device("cpu"), interest)
    model.initialize(torch.Generator().manual_seed(1))
    initialize_tables(model, 1, {"item": 0.02})
    table = list(model.tables.parameters())
    dense = [p for p in model.parameters() if all(p is not other for other in table)]
    optimizers: list[Any] = [torch.optim.AdamW(dense, lr=1e-3), RowWiseAdagrad(table, lr=0.05)]
    batches = [ranking_batch(found, CATALOGUE, reach_of(config)) for found in shown]

    def loss_of(batch: RankingBatch) -> Tensor:
        return model.loss(model.look_up(batch.items), batch) / batch.num_targets

    return _training(loss_of, batches, optimizers)


def _training(
    loss_of: Callable[[Any], Tensor], batches: list[Any], optimizers: list[torch.optim.Optimizer]
) -> Callable[[], object]:
    def run() -> None:
        for batch in batches:
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(batch).backward()
            for optimizer in optimizers:
                optimizer.step()

    return run


class _PlainDin(nn.Module):
    """What anyone would write: every pair of a candidate and an event through one network, histories padded (Zhou et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(NUM_ITEMS, WIDTH, padding_idx=0)
        self.unit = _network((4 * WIDTH, *UNIT, 1))
        self.layers = _network((2 * WIDTH, *LAYERS, 1))

    def forward(self, history_MK: Tensor, candidate_M: Tensor) -> Tensor:
        events_MKD, candidate_MD = self.items(history_MK), self.items(candidate_M)
        candidates_MKD = candidate_MD[:, None].expand_as(events_MKD)
        pairs = (events_MKD, candidates_MKD, events_MKD - candidates_MKD, events_MKD * candidates_MKD)
        weights_MK = self.unit(torch.cat(pairs, dim=-1)).squeeze(-1) * (history_MK > 0)
        interest_MD = (weights_MK[..., None] * events_MKD).sum(dim=1)
        logits: Tensor = self.layers(torch.cat((interest_MD, candidate_MD), dim=-1)).squeeze(-1)
        return logits


def _network(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths[:-1]):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def _plain_work(shown: list[JaggedImpressions]) -> Callable[[], object]:
    torch.manual_seed(1)
    model = _PlainDin()
    batches = [
        (
            torch.from_numpy(found.items.reshape(-1, MAX_HISTORY).astype(np.int64)),
            torch.from_numpy(found.candidates.items.astype(np.int64)),
            torch.from_numpy(found.candidates.labels["click"]),
        )
        for found in shown
    ]

    def loss_of(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        history, candidates, clicks = batch
        return F.binary_cross_entropy_with_logits(model(history, candidates), clicks)

    return _training(loss_of, batches, [torch.optim.Adam(model.parameters(), lr=1e-3)])


def _deepctr_work(shown: list[JaggedImpressions]) -> Callable[[], object]:
    """Return a step of DeepCTR-Torch's DIN with its defaults (Dice in the unit, l2 of weights), without the overhead of `fit`."""
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat, get_feature_names
    from deepctr_torch.models import DIN

    torch.manual_seed(1)
    item = SparseFeat("item", NUM_ITEMS, embedding_dim=WIDTH)
    seen = SparseFeat("hist_item", NUM_ITEMS, embedding_dim=WIDTH, embedding_name="item")
    columns = [item, VarLenSparseFeat(seen, maxlen=MAX_HISTORY, length_name="length")]
    model = DIN(columns, ["item"], dnn_hidden_units=LAYERS, att_hidden_size=UNIT)
    assert get_feature_names(columns) == ["item", "hist_item", "length"]
    batches = []
    for found in shown:
        history, lengths = found.items.reshape(-1, MAX_HISTORY), np.diff(found.offsets)
        packed = np.column_stack((found.candidates.items, history, lengths)).astype(np.float32)
        batches.append((torch.from_numpy(packed), torch.from_numpy(found.candidates.labels["click"])))

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        packed, clicks = batch
        loss = F.binary_cross_entropy(model(packed).squeeze(-1), clicks, reduction="sum")
        regularisation: Tensor = model.get_regularization_loss()
        return loss + regularisation

    return _training(loss_of, batches, [torch.optim.Adam(model.parameters())])
