"""Kernels that a step launches on a GPU, counted on tensors without memory: a launch costs the host about 5 microseconds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from models.attention.terms import AttentionTerms
from models.batches.history_batch import build_batch
from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from models.next_item.model import NextItemModel
from models.objectives import chunked_scores
from models.tables import TableSpec
from tests.support.device_work import as_on_a_gpu, launches

META = torch.device("meta")
MOST = 2_000  # kernels of a step: 10 ms of the host
OUTSIDE = 500  # of them for look-ups, agreement and optimizers (tests/trainer/loop/test_device_waits.py)
WIDTH, MAX_HISTORY = 64, 200
FULL = {"kind": "full_softmax"}
SAMPLED = {"kind": "sampled_softmax", "num_negatives": 1024}


def launches_of(encoder: dict[str, Any], objective: dict[str, Any], num_histories: int, num_items: int) -> int:
    """Return the kernels of forward and backward of one batch. Each operation counts as one, fused attention as its parts."""
    config = NextItemConfig.model_validate(
        {"max_history": MAX_HISTORY, "encoder": {"num_blocks": 4, **encoder}, "objective": objective}
    )
    generator = np.random.default_rng(1)
    lengths = np.clip(generator.lognormal(4.45, 0.9, num_histories).astype(np.int64), 18, MAX_HISTORY)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    items, targets = generator.integers(1, num_items, (2, offsets[-1]))
    full = objective == FULL
    negatives = generator.integers(1, num_items, 0 if full else 1024)
    batch = build_batch(
        np.arange(num_histories), offsets, items, targets, negatives, Catalogue(num_items, num_items), full
    )
    times = torch.arange(offsets[-1])
    batch = replace(batch, times=times, request_times=times)
    model = NextItemModel(config, [TableSpec("item", num_items, WIDTH)], META).to(META)
    with as_on_a_gpu(), _as_meta_allows():
        on_device = batch.to(META)
        rows = {"item": torch.empty((batch.items.rows["item"].numel(), WIDTH), device=META, requires_grad=True)}
        return launches(lambda: model.loss(rows, on_device).backward())


class _Kernel:
    """A kernel of Triton that computes nothing, and counts as one operation."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *tensors, **constants: tensors[0].neg()


@contextmanager
def _as_meta_allows() -> Iterator[None]:
    """Let tensors without memory take the path of a GPU. They have no autocast, and Triton computes nothing with them."""
    names = ("attention_forward", "attention_backward_queries", "attention_backward_keys")
    kernels = SimpleNamespace(**{name: _Kernel() for name in names})

    def path_on_a_gpu(parts: AttentionTerms, *given: object) -> str:
        return "plain" if parts.is_softmax_without_bias else "triton"

    with (
        mock.patch("models.objectives.products._low_dtype", return_value=None),
        mock.patch("torch.autocast", side_effect=lambda *given, **options: nullcontext()),
        mock.patch("models.attention.attend.path_of", path_on_a_gpu),
        mock.patch("models.attention.triton_kernels", kernels, create=True),
    ):
        yield


@pytest.mark.parametrize("num_histories", [128, 2048])
@pytest.mark.parametrize("objective", [FULL, SAMPLED], ids=["full", "sampled"])
@pytest.mark.parametrize("kind", ["sasrec", "hstu"])
def test_a_step_launches_few_kernels(kind, objective, num_histories):
    num_launches = launches_of({"kind": kind, "dropout": 0.1}, objective, num_histories, 10_000)
    assert num_launches < MOST - OUTSIDE


@pytest.mark.parametrize("kind", ["sasrec", "hstu"])
def test_launches_do_not_grow_with_the_batch_while_a_chunk_holds_its_scores(kind):
    small, large = (launches_of({"kind": kind}, SAMPLED, number, 10_000) for number in (300, 500))
    assert small == large


def test_a_catalogue_of_a_million_items_takes_few_launches():
    assert launches_of({"kind": "sasrec"}, FULL, 128, 1_000_000) < MOST - OUTSIDE


def test_chunks_of_cpus_would_take_too_many(monkeypatch):
    monkeypatch.setattr(chunked_scores, "GPU_CHUNK_ELEMENTS", chunked_scores.CHUNK_ELEMENTS)
    assert launches_of({"kind": "sasrec"}, SAMPLED, 2048, 10_000) > MOST
