"""Latency of one request, from a history to its ten best items: exported programs beside the loaded model they were made from."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.measure import Comparison
from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from models.next_item.model import NextItemModel
from models.tables import TableSpec
from trainer.data.stream.packed import PackedHistories
from trainer.export import run_program
from trainer.export.build import program_of, weights_of
from trainer.export.inputs import Form
from trainer.export.search import FloatVectors, Int8Vectors, Vectors, best_items, expanded
from trainer.export.tables import quantise
from trainer.export.trace import example_inputs, trace
from trainer.global_batch.dynamic_ids import DynamicTables
from trainer.inference.next_item import item_vectors, user_vectors
from trainer.inference.requests import Histories
from trainer.inference.trained_model import TrainedModel

NUM_ITEMS, WIDTH, NUM_EVENTS = 100_000, 64, 100
REQUESTS = 30  # of each side in a turn
TOP = 10

Answer = Callable[[Histories], Any]


def compare(turns: int) -> list[Comparison]:
    """Measure both precisions, against the loaded model of the same turns."""
    trained = _model()
    items = item_vectors(trained)
    codes, scale, offset = quantise(items)
    form = Form(trained.catalogue.inputs, NUM_EVENTS)
    exported: dict[str, tuple[run_program.Run, Vectors]] = {}
    weights = weights_of(trained)
    exported["float32"] = (_run(trained, form, "float32", weights), FloatVectors(items.numpy()))
    eight_bit = expanded(Int8Vectors(codes.numpy(), torch.cat((scale, offset), dim=1).numpy()))
    exported["int8"] = (_run(trained, form, "int8", weights), eight_bit)
    names = tuple(example_inputs(form, False))

    def loaded(history: Histories) -> Any:
        return best_items(user_vectors(trained, history), FloatVectors(items.numpy()), TOP)

    def answer_of(precision: str) -> Answer:
        run, vectors = exported[precision]

        def answer(history: Histories) -> Any:
            users = run_program.user_vectors(run, names, form, history.packed, history.lengths, WIDTH)
            return best_items(users, vectors, TOP)

        return answer

    sides = {"loaded model": loaded, **{name: answer_of(name) for name in exported}}
    times = _measure(sides, turns)
    other = f"loaded model, {_percentiles(times['loaded model'])}"
    return [
        Comparison(
            f"one request, exported {name}, {_percentiles(times[name])}",
            "requests/s",
            *(tuple((1.0 / seconds.mean(axis=1)).tolist()) for seconds in (times[name], times["loaded model"])),
            ceiling_name=other,
        )
        for name in exported
    ]


def _measure(sides: dict[str, Answer], turns: int) -> dict[str, np.ndarray]:
    """Return the seconds of each request by side, (turns, REQUESTS). The sides take turns."""
    random = np.random.default_rng(1)
    times = {name: np.zeros((turns, REQUESTS)) for name in sides}
    for answer in sides.values():
        answer(_history(random))
    for turn in range(turns):
        for name, answer in sides.items():
            for number in range(REQUESTS):
                history = _history(random)
                start = time.perf_counter()
                answer(history)
                times[name][turn, number] = time.perf_counter() - start
    return times


def _percentiles(seconds: np.ndarray) -> str:
    median, high = np.percentile(seconds * 1e3, (50, 95))
    return f"median {median:.1f} ms, 95 % within {high:.1f} ms"


def _run(trained: TrainedModel, form: Form, precision: Any, weights: Any) -> run_program.Run:
    return run_program.callable_of(trace(program_of(trained, weights, precision), form, False))


def _history(random: np.random.Generator) -> Histories:
    zeros = np.zeros(1, np.int64)
    items = random.integers(1, NUM_ITEMS + 1, NUM_EVENTS + 1).astype(np.int32)  # the last one is the request's
    packed = PackedHistories(items, zeros, zeros + NUM_EVENTS + 1, zeros, zeros, pa.array([0]))
    return Histories(packed, np.asarray([NUM_EVENTS]), 0)


def _model() -> TrainedModel:
    """Return a SASRec with random weights."""
    catalogue = Catalogue(NUM_ITEMS + 1, NUM_ITEMS + 1)
    config = NextItemConfig(max_history=NUM_EVENTS)
    model = NextItemModel(config, [TableSpec("item", NUM_ITEMS + 1, WIDTH)], torch.device("cpu"))
    model.initialize(torch.Generator().manual_seed(1))
    nothing: Any = SimpleNamespace()
    manifest: Any = SimpleNamespace(task="next_item")
    return TrainedModel(
        nothing, manifest, nothing, model.eval().requires_grad_(False), catalogue, DynamicTables({}, (), 1)
    )
