"""A score depends on its own input alone: the same alone and among others, in any batch, on any ranks, in training as in use.

Histories are several times as long as `max_history`, many times are tied, and some candidates have no history at all. Models have
random weights that matter, and no dropout.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from models.batches.micro_batches import with_cuts
from models.config import NextItemConfig
from models.encoders.config import EncoderKind
from models.features.catalogue import Catalogue, IdColumn
from models.features.values import InputFeature
from models.next_item.model import NextItemModel
from models.ranking.batch import RankingBatch
from models.ranking.config import RankingConfig, learned_labels
from models.ranking.interest import interest_of
from models.ranking.micro_batches import parts_of
from models.ranking.model import RankingModel
from models.ranking.presets import RankerKind
from models.ranking.reach import reach_of
from models.tables import TableSpec
from sharding.config import HashIdsConfig, TableConfig
from sharding.tables.initialize import initialize_tables
from sharding.world import World
from tests.contracts.test_ranking import job_in
from tests.models.ranking.test_model import doubled, looked_up
from tests.support.grown_datasets import DAY, LABELS, NUM_ITEMS, events_dataset, ranking_dataset
from tests.support.rank_pool import RankPool
from tests.trainer.evaluation.ranking.worlds import random_shown, write_world
from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.dataset.splits import TimeBounds
from trainer.data.stream.catalogue_reader import columns_for, read_catalogue
from trainer.data.stream.day_examples import day_examples
from trainer.data.stream.days import Calendar, count_days
from trainer.data.stream.examples import WINDOW_STEP
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.held_out import Deal, HeldOut
from trainer.data.stream.impressions import HeldOutImpressions, ImpressionStream, impression_examples
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import RowGroupReader
from trainer.loop.build import build_model
from trainer.placement.loads import table_rows

MAX_HISTORY, NUM_DAYS = 4, 3
ALONE = World(0, 1, torch.device("cpu"))
EVER = (-(1 << 40), 1 << 40)
HASHED = TableConfig(ids=HashIdsConfig(kind="hash", num_rows=20))
TABLES = {"item": TableConfig(), "place": HASHED, "tags": HASHED}
NARROW: dict[str, Any] = {"experts": {"hidden": [6], "activation": "dice"}}


def events(num_blocks: int, **more: Any) -> dict[str, Any]:
    """Return an encoder of as many blocks."""
    return {"num_blocks": num_blocks, "positions": "none", "dropout": 0.0, **more}


HEADS = {"num_heads": 2}
TIMES = {"inputs": {"time": ["gap", "hour", "weekday"]}}
RANKERS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind, "encoder": {"dropout": 0.0}} for kind in get_args(RankerKind)},
    "DIN over two blocks": {"kind": "din", "encoder": events(2)},
    "DIN, times": {"kind": "din", **TIMES},
    "DIN in a window": {"kind": "din", "encoder": events(2), "interest": {"attention": {"window": 3}}},
    "DIN, the oldest events from beyond a window": {
        "kind": "din",
        "interest": {"attention": {"window": 2, "num_global": 1}},
    },
    "BST of two blocks": {"kind": "bst", "encoder": {"num_blocks": 2, "dropout": 0.0}},
    "HSTU of four blocks, times": {"kind": "hstu", "encoder": events(4), **TIMES},
    "HSTU in a window": {"kind": "hstu", "encoder": events(3, attention={"window": 3})},
    "HSTU, request time": {"kind": "hstu", "encoder": events(2), "inputs": {"request_time": True}},
    "rotary positions": {"kind": "bst", "encoder": events(2, positions="rotary")},
    "attention pooling of events": {"kind": "din", "encoder": events(1, pooling="attention")},
    "attention pooling of candidates": {"kind": "bst", "encoder": events(2, pooling="attention")},
    "FuXi-alpha": {"kind": "bst", "encoder": {**events(2), "kind": "fuxi_alpha"}},
    "LiGR, sparse": {"kind": "hstu", "encoder": {**events(2, attention={"normalisation": "entmax15"}), "kind": "ligr"}},
    "differential": {"kind": "din", "encoder": events(2, attention={**HEADS, "differential": True})},
    "biases by slopes": {
        "kind": "hstu",
        "encoder": events(2, attention={"position_bias": "functional", "time_bias": "functional"}),
    },
    "SIM over two blocks": {"kind": "sim", "encoder": events(2), "interest": {"search": {"num_found": 2}}},
    "SIM by category": {
        "kind": "sim",
        "encoder": events(2),
        "interest": {"search": {"kind": "category", "feature": "tag", "num_found": 2}},
    },
    "norms of candidates": {"kind": "hstu", "encoder": events(2, candidate_norms=True)},
    "norms of candidates, BST": {"kind": "bst", "encoder": events(2, candidate_norms=True, pooling="attention")},
    "mean of two blocks": {"kind": "pooled", "encoder": events(2)},
}
Scores = dict[tuple[int, int, int], Tensor]  # by row, time and item of an impression: a logit for each label


@dataclass(frozen=True)
class Ranker:
    """A model, and the impressions of the dataset as it is given them."""

    folder: Path
    manifest: Manifest
    config: RankingConfig

    @cached_property
    def catalogue(self) -> Catalogue:
        catalogue = read_catalogue(self.folder, self.manifest, TABLES, self.config)
        tags = IdColumn(np.arange(NUM_ITEMS + 1) % 3 + 1, np.arange(NUM_ITEMS + 2))
        table = TABLES["tags"]
        return replace(catalogue, features=(InputFeature("tag", "tags", table.dim),), columns={"tag": tags})

    @cached_property
    def model(self) -> RankingModel:
        specs = [
            TableSpec(name, rows, TABLES[name].dim)
            for name, rows in table_rows(TABLES, self.manifest, self.config.inputs).items()
        ]
        width = TABLES["item"].dim
        interest = interest_of(width, MAX_HISTORY, self.config.encoder, self.config.interest)
        labels, catalogue = learned_labels(self.config, LABELS), self.catalogue
        device = torch.device("cpu")
        model = RankingModel(self.config, labels, specs, device, interest, catalogue.features, catalogue.inputs)
        model.initialize(torch.Generator().manual_seed(1))
        initialize_tables(model, 1, {spec.name: 1.0 for spec in specs})
        with_noise(model)
        return model.double()

    @cached_property
    def reader(self) -> RowGroupReader:
        return RowGroupReader(self.folder, self.manifest, replace(columns_for(self.catalogue), impressions=True))

    def shown(
        self,
        begin: int,
        end: int,
        batch_size: int = 1000,
        rank: int = 0,
        world_size: int = 1,
        groups: tuple[int, ...] | None = None,
    ) -> Scores:
        """Return scores of the impressions shown in [begin, end), as evaluation gives them."""
        deal = Deal(self.reader, batch_size, rank, world_size, groups)
        held = HeldOutImpressions(deal, self.catalogue, "test", reach_of(self.config), (begin, end))
        self.model.eval()
        return self.scores(one.batch for one in held.batches())

    def trained(self, stream: ImpressionStream, num_epochs: int) -> Scores:
        """Return scores of all training impressions, as training computes them."""
        self.model.train()
        steps = stream.steps(Position(0, 0), num_epochs)
        return self.scores(part for step in steps for part in parts_of(step.batch))

    def stream(self, batch_size: int, micro_batch_tokens: int | None = None) -> ImpressionStream:
        examples = impression_examples(self.reader, self.manifest.counts.train_events, MAX_HISTORY)
        batches = GlobalBatches(examples, batch_size, None, 5, 0, 1)
        return ImpressionStream(self.reader, batches, reach_of(self.config), self.catalogue, micro_batch_tokens)

    def stream_of_days(self, calendar: Calendar) -> ImpressionStream:
        examples = day_examples(self.reader, count_days(self.reader, calendar, ALONE), MAX_HISTORY)
        batches = GlobalBatches(examples, 7, None, 5, 0, 1)
        return ImpressionStream(self.reader, batches, reach_of(self.config), self.catalogue, calendar=calendar)

    def scores(self, batches: Iterable[RankingBatch]) -> Scores:
        result: Scores = {}
        for batch in batches:
            if not batch.num_targets:
                continue
            with torch.no_grad():
                logits = self.model.logits(looked_up(self.model, batch), doubled(batch))
            row = (batch.row_ids % WINDOW_STEP)[batch.history_of]
            keys = list(zip(row.tolist(), batch.shown_at.tolist(), batch.candidate_ids.tolist(), strict=True))
            assert not result.keys() & set(keys)
            result |= dict(zip(keys, logits, strict=True))
        return result


def with_noise(model: torch.nn.Module) -> None:
    """Give weights that begin at zero, or near it, values that matter."""
    for number, (_, parameter) in enumerate(sorted(model.named_parameters())):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.data.add_(0.2 * noise)


def assert_equal(actual: Scores, expected: Scores, at_least: int) -> None:
    """Compare within 1e-5 of the largest: the order of sums may differ, and angles of rotary positions are float32."""
    assert len(actual) >= at_least
    keys = list(actual)
    left, right = torch.stack([actual[key] for key in keys]), torch.stack([expected[key] for key in keys])
    assert right.std() > 0.1
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5 * float(right.abs().max()))


@pytest.fixture(scope="module")
def impressions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Return impressions: a third of the users on all days, with up to 40 events; an item is shown to a user once at a time."""
    folder = tmp_path_factory.mktemp("impressions")
    return folder, ranking_dataset(folder, num_days=NUM_DAYS)


@pytest.fixture(scope="module", params=RANKERS)
def ranker(request: pytest.FixtureRequest, impressions: tuple[Path, Manifest]) -> Ranker:
    given = {"max_history": MAX_HISTORY, "inputs": {}, **NARROW, **RANKERS[request.param]}
    given["inputs"] = {"time_unit": "seconds", **given["inputs"]}
    return Ranker(*impressions, RankingConfig.model_validate(given))


@pytest.fixture(scope="module")
def together(ranker: Ranker) -> Scores:
    """Return scores of all impressions of all users, in one batch."""
    return ranker.shown(*EVER)


@pytest.mark.slow
def test_a_ranker_scores_an_impression_alone_as_among_others(ranker: Ranker, together: Scores) -> None:
    """Every eighth moment by itself, the latest third, and every user by itself."""
    moments = sorted({time for _, time, _ in together})
    alone: Scores = {}
    for moment in moments[::8]:
        alone |= ranker.shown(moment, moment + 1)
    assert_equal(alone, together, 50)
    assert_equal(ranker.shown(NUM_DAYS * DAY * 2 // 3, NUM_DAYS * DAY), together, 100)
    assert_equal(ranker.shown(*EVER, batch_size=1), together, len(together))


@pytest.mark.slow
def test_a_ranker_scores_an_impression_the_same_in_any_order_and_on_any_rank(ranker: Ranker, together: Scores) -> None:
    groups = tuple(reversed(range(len(ranker.reader.group_rows))))
    assert_equal(ranker.shown(*EVER, batch_size=5, groups=groups), together, len(together))
    for world_size in (2, 3):
        actual: Scores = {}
        for rank in range(world_size):
            actual |= ranker.shown(*EVER, batch_size=12, rank=rank, world_size=world_size)
        assert_equal(actual, together, len(together))


@pytest.mark.slow
def test_training_computes_the_scores_of_evaluation(ranker: Ranker, together: Scores) -> None:
    """In whole batches, in pieces, and day by day."""
    num_training = ranker.manifest.counts.train_events
    assert_equal(ranker.trained(ranker.stream(9), 1), together, num_training)
    assert_equal(ranker.trained(ranker.stream(9, micro_batch_tokens=20), 1), together, num_training)
    calendar = Calendar(origin=0, length=13, earliest=None, stop=15, end=NUM_DAYS * DAY, ticks=None)
    by_day = ranker.trained(ranker.stream_of_days(calendar), calendar.stop)
    assert_equal(by_day, together, num_training * 9 // 10)


def scores_of_rank(world: World, job: Job) -> dict[tuple[int, int], list[float]]:
    """Return logits of a model with sharded tables, by row and number of each held-out impression of this rank. Collective."""
    built = build_model(job, read_manifest(job.dataset_dir), world)
    with_noise(built.model.interest)
    evaluator = built.task.evaluator("test", world, built.dynamic)
    result = {}
    for held, logits in evaluator.score_all(built.model):  # type: ignore[union-attr, arg-type]
        keys = zip(held.row_ids[held.batch.history_of.numpy()].tolist(), held.place.tolist(), strict=True)
        result |= dict(zip(keys, logits.tolist(), strict=True))
    return result


def test_sharded_tables_change_no_score_at_any_world_size(rank_pool: RankPool, tmp_path: Path) -> None:
    write_world(tmp_path / "dataset", random_shown())
    model = {
        "kind": "hstu",
        "max_history": 3,
        "encoder": {"num_blocks": 3, "dropout": 0.0},
        "inputs": {"time": ["gap"], "time_unit": "seconds"},
    }
    scores = {}
    for world_size in (1, 2, 3):
        job = job_in(tmp_path / str(world_size), tmp_path / "dataset", model, evaluate={"batch_size": 6 * world_size})
        scores[world_size] = {}
        for of_rank in rank_pool.run(world_size, scores_of_rank, job):
            assert not scores[world_size].keys() & of_rank.keys()
            scores[world_size] |= of_rank
    expected = np.asarray(list(scores[1].values()))
    assert len(expected) > 100
    for world_size in (2, 3):
        assert scores[world_size].keys() == scores[1].keys()
        actual = np.asarray([scores[world_size][key] for key in scores[1]])
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


ENCODERS: dict[str, dict[str, Any]] = {
    **{kind: {"encoder": {"kind": kind}} for kind in get_args(EncoderKind)},
    "times of events and requests": {
        "encoder": {"kind": "hstu"},
        "inputs": {"time": ["gap", "hour", "weekday"], "request_time": True},
    },
    "masked items, times": {
        "encoder": {"kind": "bert4rec", "attention": {"bias": "both"}},
        "inputs": {"time": ["gap"], "request_time": True},
    },
    "rotary, in a window with global events": {
        "encoder": {"positions": "rotary", "num_blocks": 3, "attention": {"window": 2, "num_global": 1}},
    },
    "truncated below two blocks": {
        "encoder": {"kind": "hstu", "num_blocks": 3, "truncate_after": 1, "truncate_to": 3},
        "inputs": {"request_time": True},
    },
    "truncated, pooled": {
        "encoder": {"kind": "two_tower", "positions": "rotary", "truncate_after": 1, "truncate_to": 2},
    },
    "merged events": {
        "encoder": {"kind": "hstu", "num_blocks": 3, "merge_size": 2, "merge_recent": 2},
        "inputs": {"request_time": True},
    },
    "merged by a transformer": {
        "encoder": {"positions": "rotary", "merge_size": 2, "merge_recent": 1, "merge_form": "transformer"},
    },
}


@dataclass(frozen=True)
class Recommender:
    """A model of the next event, and the held-out events of the dataset as it is asked for them."""

    folder: Path
    manifest: Manifest
    config: NextItemConfig

    @cached_property
    def catalogue(self) -> Catalogue:
        return read_catalogue(self.folder, self.manifest, TABLES, self.config)

    @cached_property
    def model(self) -> NextItemModel:
        sizes = table_rows(TABLES, self.manifest, self.config.inputs)
        specs = [TableSpec(name, rows, TABLES[name].dim) for name, rows in sizes.items()]
        model = NextItemModel(self.config, specs, torch.device("cpu"), (), self.catalogue.inputs)
        model.initialize(torch.Generator().manual_seed(1))
        initialize_tables(model, 1, {spec.name: 1.0 for spec in specs})
        with_noise(model)
        return model.double().eval()

    @cached_property
    def reader(self) -> RowGroupReader:
        return RowGroupReader(self.folder, self.manifest, columns_for(self.catalogue))

    @torch.no_grad()
    def scores(
        self,
        targets: Literal["all", "first"],
        batch_size: int = 1000,
        rank: int = 0,
        world_size: int = 1,
        most_events: int | None = None,
    ) -> Scores:
        """Return the score of each evaluated held-out event, by row, number and item."""
        longest, masks = self.config.max_history, self.config.masks_items
        held_out = HeldOut(self.reader, self.catalogue, "test", targets, longest, batch_size, rank, world_size, masks)
        known, result = self.catalogue.known, Scores()
        items_ID = self.model.item_vectors({"item": self.model.look_up(known)["item"].double()}, known)
        for held in held_out.batches():
            batch = with_cuts(held.batch, most_events)
            users_BD = self.model.user_vectors(looked_up(self.model, batch), doubled(batch))
            for number, row in enumerate(held.row_ids.tolist()):
                items = held.targets[slice(*held.target_offsets[number : number + 2])]
                of_user = items_ID[torch.from_numpy(items)] @ users_BD[number]
                keys = [(row, place, item) for place, item in enumerate(items.tolist())]
                assert not result.keys() & set(keys)
                result |= dict(zip(keys, of_user, strict=True))
        return result


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Return histories of up to 45 events, of which the last sixth of the time is the test period."""
    folder, end = tmp_path_factory.mktemp("events"), NUM_DAYS * DAY
    return folder, events_dataset(folder, num_days=NUM_DAYS, cuts=TimeBounds(end * 2 // 3, end * 5 // 6))


@pytest.mark.parametrize("form", ENCODERS)
def test_an_encoder_scores_a_held_out_event_alone_as_among_others(histories: tuple[Path, Manifest], form: str) -> None:
    """In one batch, in pieces, every user by itself, on any ranks, and with all or one of the user's held-out events."""
    given = {"max_history": MAX_HISTORY, "inputs": {}, **ENCODERS[form]}
    given["inputs"] = {"time_unit": "seconds", **given["inputs"]}
    recommender = Recommender(*histories, NextItemConfig.model_validate(given))
    together = recommender.scores("all")
    firsts = {key for key in together if key[1] == 0}
    assert len(together) > len(firsts) + 20
    assert_equal(recommender.scores("all", batch_size=1), together, len(together))
    assert_equal(recommender.scores("first", batch_size=5), together, len(firsts))
    assert_equal(recommender.scores("all", most_events=9), together, len(together))
    for world_size in (2, 3):
        actual: Scores = {}
        for rank in range(world_size):
            actual |= recommender.scores("all", 12, rank, world_size)
        assert_equal(actual, together, len(together))
