"""Latency of one request, from a history to its ten best items, compared with the loaded model that encodes the whole history.

Measured are exported programs, and a followed history, of which only the newest events are encoded.
"""

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
from trainer.inference.live_history import LiveHistory
from trainer.inference.next_item import item_vectors, user_vectors
from trainer.inference.requests import Histories
from trainer.inference.trained_model import TrainedModel

NUM_ITEMS, WIDTH, NUM_EVENTS = 100_000, 64, 100
REQUESTS = 30  # of each side in a turn
TOP = 10

Answer = Callable[[], Any]
Side = Callable[[np.ndarray], Answer]  # prepares the answer to a history of given ids


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

    vectors = FloatVectors(items.numpy())

    def whole(ids: np.ndarray) -> Answer:
        history = _history(ids)
        return lambda: best_items(user_vectors(trained, history), vectors, TOP)

    def followed(ids: np.ndarray) -> Answer:
        live, newest = LiveHistory(trained, _history(ids[:-1])), _history(ids[-1:])
        live.vector()

        def answer() -> Any:
            live.append(newest)
            return best_items(live.vector()[None], vectors, TOP)

        return answer

    def side_of(precision: str) -> Side:
        run, stored = exported[precision]

        def prepare(ids: np.ndarray) -> Answer:
            history = _history(ids)

            def answer() -> Any:
                users = run_program.user_vectors(run, names, form, history.packed, history.lengths, WIDTH)
                return best_items(users, stored, TOP)

            return answer

        return prepare

    sides = {"whole": whole, "one new event": followed, **{f"exported {name}": side_of(name) for name in exported}}
    times = _measure(sides, turns)
    other = f"loaded model, whole history, {_percentiles(times['whole'])}"
    return [
        Comparison(
            f"one request, {name}, {_percentiles(times[name])}",
            "requests/s",
            _speeds(times[name]),
            _speeds(times["whole"]),
            other,
        )
        for name in sides
        if name != "whole"
    ]


def _measure(sides: dict[str, Side], turns: int) -> dict[str, np.ndarray]:
    """Return the seconds of each request by side, (turns, REQUESTS). The sides take turns."""
    random = np.random.default_rng(1)
    times = {name: np.zeros((turns, REQUESTS)) for name in sides}
    for prepare in sides.values():
        prepare(_ids(random))()
    for turn in range(turns):
        for name, prepare in sides.items():
            for number in range(REQUESTS):
                answer = prepare(_ids(random))
                start = time.perf_counter()
                answer()
                times[name][turn, number] = time.perf_counter() - start
    return times


def _speeds(seconds: np.ndarray) -> tuple[float, ...]:
    """Return the requests per second of each turn."""
    return tuple((1.0 / seconds.mean(axis=1)).tolist())


def _percentiles(seconds: np.ndarray) -> str:
    median, high = np.percentile(seconds * 1e3, (50, 95))
    return f"median {median:.1f} ms, 95 % within {high:.1f} ms"


def _run(trained: TrainedModel, form: Form, precision: Any, weights: Any) -> run_program.Run:
    return run_program.callable_of(trace(program_of(trained, weights, precision), form, False))


def _ids(random: np.random.Generator) -> np.ndarray:
    return random.integers(1, NUM_ITEMS + 1, NUM_EVENTS)


def _history(ids: np.ndarray) -> Histories:
    zeros = np.zeros(1, np.int64)
    items = np.append(ids, 0).astype(np.int32)  # the last one is the request's
    packed = PackedHistories(items, zeros, zeros + items.size, zeros, zeros, pa.array([0]))
    return Histories(packed, np.asarray([ids.size]), 0)


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
