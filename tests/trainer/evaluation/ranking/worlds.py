"""A small dataset of impressions with two labels, a model without weights, and what evaluation should find, row by row."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models.features.catalogue import Catalogue
from models.features.request import ItemRequest
from models.ranking.batch import RankingBatch
from models.ranking.config import LabelConfig
from models.ranking.reach import Reach
from sharding.world import World
from tests.support.datasets import tiny_ranking_dataset
from trainer.config.evaluate import EvaluateConfig
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import Split
from trainer.evaluation.ranking.evaluate import RankingEvaluator, make_ranking_evaluator
from trainer.global_batch.dynamic_ids import DynamicTables

LABELS = ("click", "buy")
NUM_ITEMS = 15
MAX_HISTORY = 12
Shown = list[tuple[str, int, int, float, float]]  # user, item, time, click, buy


def random_shown(seed: int = 0, count: int = 900) -> Shown:
    """Of 30 users, some with few impressions, the last of whom come late; who does not click does not buy."""
    random = np.random.default_rng(seed)
    rows = {
        (f"u{user:02d}", int(random.integers(1, NUM_ITEMS + 1)), int(random.integers(0 if user < 24 else 76, 100)))
        for user in random.integers(0, 30, size=(count, 2)).min(axis=1).tolist()
    }
    found = []
    for user, item, time in sorted(rows):
        click = float(random.random() < 0.2 + item / 30)
        found.append((user, item, time, click, click * float(random.random() < 0.5)))
    return found


def write_world(folder: Path, shown: Shown) -> Manifest:
    """Write a dataset: times below 60 train, those from 80 on test; items are their own ids."""
    names = ("user", "item", "time", "label.click", "label.buy")
    table = pa.table(dict(zip(names, zip(*shown, strict=True), strict=True)))
    for name in names[3:]:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table.column(name).cast(pa.float32()))
    catalogue = [("z99", item, 0) for item in range(1, NUM_ITEMS + 1)]
    past = pa.table(dict(zip(("user", "item", "time"), zip(*catalogue, strict=True), strict=True)))
    return tiny_ranking_dataset(folder, table, past, labels=LABELS)


class KnowsItems:
    """Logits of few values: of the item, the time and how much the history holds; nothing is looked up or learned."""

    training = True

    def __init__(self, labels: tuple[str, ...] = LABELS) -> None:
        self.labels = labels

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def look_up(self, request: ItemRequest) -> dict[str, Tensor]:
        return {}

    def logits(self, rows: dict[str, Tensor], batch: RankingBatch) -> Tensor:
        assert not self.training
        seen = batch.history_end.clamp(max=MAX_HISTORY)
        of_click = logits_of(batch.candidate_ids, batch.shown_at, seen)
        return torch.stack([of_click, of_click / 2 - 0.5], dim=1)[:, : len(self.labels)].float()


def logits_of(item: Tensor, time: Tensor, seen: Tensor) -> Tensor:
    return (item % 5) / 2 - 1.5 + (time % 3) / 4 + seen / 8


def evaluator_of(
    folder: Path,
    manifest: Manifest,
    world: World,
    split: Split = "test",
    labels: tuple[str, ...] = LABELS,
    buy: LabelConfig | None = None,
) -> RankingEvaluator:
    config = EvaluateConfig(batch_size=7)
    catalogue = Catalogue(NUM_ITEMS + 1, NUM_ITEMS + 1)
    dynamic = DynamicTables({}, (), 1)
    reach = Reach(MAX_HISTORY, MAX_HISTORY)
    given = {"click": LabelConfig(), "buy": buy or LabelConfig()}
    return make_ranking_evaluator(
        folder, manifest, catalogue, split, config, reach, world, dynamic, {name: given[name] for name in labels}
    )
