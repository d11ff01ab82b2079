"""What is counted of targets is what batches hold, and corrections by it are the probabilities of what is really drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from sharding.world import World
from tests.support.datasets import tiny_dataset
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.data.stream.examples import examples_of
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.histories import TrainStream
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import RowGroupReader
from trainer.data.stream.target_counts import UNITS, count_targets
from trainer.global_batch.negatives import GlobalNegatives

MAX_HISTORY = 4  # far fewer events than histories have
MASKED = {"encoder": {"kind": "bert4rec"}, "masking": {"probability": 0.3, "last_probability": 0.2}}
TRUNCATED = {"encoder": {"truncate_after": 1, "truncate_to": 3}}
MERGED = {"encoder": {"merge_size": 2, "merge_recent": 3}}
WHOLE = 10_000  # examples: the epoch is one batch
KINDS = [{"kind": "in_batch"}, {"kind": "cross_rank"}, {"kind": "mixed", "uniform_share": 0.3}]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("targets")
    return folder, tiny_dataset(folder, num_users=80, num_items=12, mean_events=20)


def config_of(**model: Any) -> NextItemConfig:
    return NextItemConfig.model_validate({"max_history": MAX_HISTORY, **model})


def catalogue_of(dataset: tuple[Path, Manifest]) -> Catalogue:
    return Catalogue(dataset[1].num_item_rows, dataset[1].num_item_rows)


def stream_of(dataset: tuple[Path, Manifest], config: NextItemConfig, long_histories: Any) -> TrainStream:
    reader = RowGroupReader(*dataset)
    examples = examples_of(reader, MAX_HISTORY, long_histories, False, last_is_input=config.masks_items)
    return TrainStream(reader, GlobalBatches(examples, WHOLE, None, 3, 0, 1), config, catalogue_of(dataset))


def counts_of(
    dataset: tuple[Path, Manifest], config: NextItemConfig, long_histories: str, world_size: int = 1
) -> np.ndarray:
    reader, num_known = RowGroupReader(*dataset), catalogue_of(dataset).num_known
    windows, cpu = long_histories == "windows", torch.device("cpu")
    parts = [count_targets(reader, config, windows, num_known, World(r, world_size, cpu)) for r in range(world_size)]
    return np.sum(parts, axis=0)


def targets_of_epochs(stream: TrainStream, epochs: range) -> np.ndarray:
    ids = [step.batch.target_ids.numpy() for step in stream.steps(Position(epochs[0], 0), epochs[-1] + 1)]
    return np.bincount(np.concatenate(ids), minlength=stream.catalogue.num_known)


@pytest.mark.parametrize("long_histories", ["recent", "windows"])
def test_counts_are_those_of_the_targets_of_an_epoch(dataset, long_histories):
    config = config_of()
    expected = targets_of_epochs(stream_of(dataset, config, long_histories), range(1))
    for world_size in (1, 3):
        np.testing.assert_array_equal(counts_of(dataset, config, long_histories, world_size), expected * UNITS)
    train_events = np.concatenate(([0], read_vocabulary(*dataset).train_events))
    assert (expected[1:] < train_events[1:]).all()
    if long_histories == "recent":  # then shares of training events are quite other ones
        assert not np.allclose(expected / expected.sum(), train_events / train_events.sum(), rtol=0.1)


@pytest.mark.parametrize("long_histories", ["recent", "windows"])
def test_counts_of_masked_items_are_those_of_an_average_epoch(dataset, long_histories):
    config, num_epochs = config_of(**MASKED), 300
    masked = targets_of_epochs(stream_of(dataset, config, long_histories), range(num_epochs))
    expected = counts_of(dataset, config, long_histories) / UNITS * num_epochs
    assert masked.sum() == pytest.approx(expected.sum(), rel=0.01)
    np.testing.assert_array_less(np.abs(masked - expected), 5 * np.sqrt(expected + 1))


@pytest.mark.parametrize("long_histories", ["recent", "windows"])
@pytest.mark.parametrize("given", [TRUNCATED, MERGED], ids=["truncated", "merged"])
def test_counts_of_truncated_models_are_those_of_the_newest_events(dataset, long_histories, given):
    config = config_of(**given)
    expected = targets_of_epochs(stream_of(dataset, config, long_histories), range(1))
    np.testing.assert_array_equal(counts_of(dataset, config, long_histories), expected * UNITS)
    assert expected.sum() < targets_of_epochs(stream_of(dataset, config_of(), long_histories), range(1)).sum()


@pytest.mark.parametrize("long_histories", ["recent", "windows"])
@pytest.mark.parametrize("encoder", [{}, TRUNCATED["encoder"]], ids=["whole", "truncated"])
def test_counts_with_stochastic_length_are_those_of_an_average_epoch(dataset, long_histories, encoder):
    config, num_epochs = config_of(stochastic_length=1.2, encoder=encoder), 300
    sampled = targets_of_epochs(stream_of(dataset, config, long_histories), range(num_epochs))
    expected = counts_of(dataset, config, long_histories) / UNITS * num_epochs
    assert sampled.sum() == pytest.approx(expected.sum(), rel=0.01)
    np.testing.assert_array_less(np.abs(sampled - expected), 5 * np.sqrt(expected + 1))


@pytest.mark.parametrize("negatives", KINDS, ids=[kind["kind"] for kind in KINDS])
@pytest.mark.parametrize("long_histories", ["recent", "windows"])
@pytest.mark.parametrize("model", [{}, MASKED], ids=["next item", "masked"])
def test_corrections_are_the_probabilities_of_the_draws(dataset, negatives, long_histories, model):
    """Draws of an epoch that is one batch; of masked items one of many epochs, so that all may be masked."""
    num, num_epochs = 20_000, 20 if model else 1
    objective = {"kind": "sampled_softmax", "num_negatives": num, "negatives": negatives, "logq": "counts"}
    config = config_of(**model, objective=objective)
    whole = GlobalNegatives(config.objective, catalogue_of(dataset), 3)
    whole.take_target_counts(counts_of(dataset, config, long_histories))
    drawn = np.zeros(catalogue_of(dataset).num_known)
    probability = np.full_like(drawn, np.nan)
    for step in stream_of(dataset, config, long_histories).steps(Position(0, 0), num_epochs):
        batch = whole.complete_batch(step.batch, step.before, World(0, 1, torch.device("cpu")))
        np.add.at(drawn, batch.negative_ids.numpy(), 1.0)
        for ids, log_q in ((batch.negative_ids, batch.negative_log_q), (batch.target_ids, batch.target_log_q)):
            probability[ids.numpy()] = np.exp(log_q.numpy())
    assert np.nansum(probability) == pytest.approx(1.0, rel=1e-5)
    share = drawn / drawn.sum()
    # Draws vary, and so do the targets of an epoch where they are masked at random.
    np.testing.assert_allclose(share[1:], np.nan_to_num(probability)[1:], rtol=0.12 if model else 0.1, atol=0.002)
