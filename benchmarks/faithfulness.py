"""Faithfulness of all methods of explanation for trained runs, measured on held-out events, as one JSON file.

    python -m benchmarks.faithfulness SASRec=runs/NAME/trials/SASRec-seed1 SASRec=... HSTU=... --out docs/results/explain/NAME.json

Runs with one name differ in their seed alone. The explained item is the best candidate at the time of each user's test event.
With --causes LOGS, a folder of `shoal synth`, effects among the test events are explained instead, and planted causes are counted.
The tables of docs/explain.md are made of these files: python -m benchmarks.faithfulness_tables.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from benchmarks.machine import processor_name
from cluster.config.run_config import job_of, load_config
from trainer.checkpoint import folder as checkpoint_folder
from trainer.data.stream.catalogue_reader import columns_for
from trainer.data.stream.columns import gather
from trainer.data.stream.packed import joined
from trainer.data.stream.row_groups import RowGroupReader
from trainer.errors import UserError
from trainer.explanation import attention, gradients, integrated, occlusion, rollout
from trainer.explanation.baselines import sampled_baselines, zero_baseline
from trainer.explanation.catalogue import Seen
from trainer.explanation.explained import ExplainedNextItem, explained_model
from trainer.explanation.faithfulness.measure import long_enough, measure
from trainer.explanation.faithfulness.orders import order_of, popularity_order, random_order, recency_order
from trainer.explanation.faithfulness.planted import is_cause, recoveries
from trainer.explanation.faithfulness.results import to_json
from trainer.explanation.faithfulness.sanity import (
    agreement,
    randomised_weights,
    uniform_attention,
    with_uniform_attention,
)
from trainer.explanation.faithfulness.scoring import CatalogueScorer, whole_catalogue
from trainer.explanation.faithfulness.summary import summarise
from trainer.explanation.faithfulness.words import verdict
from trainer.explanation.questions import Questions, ask
from trainer.inference.trained_model import TrainedModel, load_trained_model

METHODS = ("attention", "rollout", "gradient_x_input", "ig_zero", "ig_sampled", "occlusion")
CHECKED_USERS = 60  # users of the checks with randomised weights, each of which needs all methods again


@dataclass(frozen=True)
class Settings:
    """Options of the measurement, the same for every run."""

    num_users: int
    """Number of users, drawn at random; all if there are fewer."""
    seed: int
    """Seed of the users, the random order and the sampled baselines."""
    num_steps: int
    """Steps of integrated gradients before a question that misses completeness is integrated again."""
    max_steps: int
    """The largest number of steps."""
    num_samples: int
    """Sampled baselines of a question."""
    removal: str
    """Meaning of removing an event."""
    methods: tuple[str, ...]
    """Methods of explanation."""


@dataclass(frozen=True)
class Held:
    """Questions about the test events of users, and the items of their histories."""

    asked: Questions
    """The questions. Their targets are the test events."""
    seen: Seen
    """Items that are no candidates."""
    num_short: int
    """Number of users without enough events."""


def main() -> None:
    """Measure the runs of the command line, and write the results."""
    parser = argparse.ArgumentParser(description="Faithfulness of explanations of trained runs.")
    parser.add_argument(
        "runs", nargs="+", metavar="NAME=FOLDER", help="run folders; equal names are seeds of one model"
    )
    parser.add_argument("--out", required=True, help="file for the results")
    parser.add_argument("--users", type=int, default=1000, help="number of users")
    parser.add_argument("--seed", type=int, default=1, help="seed of users, random orders and sampled baselines")
    parser.add_argument("--steps", type=int, default=20, help="steps of integrated gradients")
    parser.add_argument("--max-steps", type=int, default=160, help="most steps, where completeness is missed by 1 %%")
    parser.add_argument("--samples", type=int, default=5, help="sampled baselines per question")
    parser.add_argument("--removal", choices=("deleted", "masked", "replaced"), default="deleted")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--causes", help="folder of the synthetic logs with the planted causes to count")
    given = parser.parse_args()
    methods = tuple(given.methods)
    settings = Settings(given.users, given.seed, given.steps, given.max_steps, given.samples, given.removal, methods)
    torch.set_num_threads(1)
    results = []
    maps: dict[str, list[dict[str, np.ndarray]]] = {}
    for run in given.runs:
        name, _, folder = run.partition("=")
        if not folder:
            raise UserError(f"{run}: give a name and a folder, as NAME=FOLDER")
        print(f"{name}: {folder}", flush=True)
        trained = trained_model(Path(folder))
        if given.causes:
            results.append(_planted(name, trained, Path(given.causes), settings))
        else:
            results.append(_faithful(name, trained, settings, maps))
        values = {
            "machine": processor_name(),
            "settings": settings.__dict__ | {"methods": list(methods)},
            "runs": results,
            "agreement": _agreements(maps),
        }
        Path(given.out).parent.mkdir(parents=True, exist_ok=True)
        Path(given.out).write_text(json.dumps(rounded(values), separators=(",", ":")), encoding="utf-8")


def rounded(values: Any) -> Any:
    """Return nested values with six significant digits of each number, so that the file stays small."""
    match values:
        case float():
            return float(f"{values:.6g}")
        case dict():
            return {name: rounded(value) for name, value in values.items()}
        case list() | tuple():
            return [rounded(value) for value in values]
    return values


def trained_model(folder: Path) -> TrainedModel:
    """Load the best checkpoint of a run. Its dataset is where its config says."""
    config = load_config(str(folder / "config.json"), None)
    return load_trained_model(job_of(config), checkpoint_folder.to_evaluate(folder / "checkpoints", print))


def held_out(model: ExplainedNextItem, rows: np.ndarray | None, settings: Settings) -> Held:
    """Return questions about the first test events of users.

    Args:
        model: the model.
        rows: rows of the users in the dataset; None draws users.
        settings: the number of users, and the seed.
    """
    trained = model.trained
    columns = replace(columns_for(trained.catalogue, users=True), times=True)
    reader = RowGroupReader(trained.job.dataset_dir, trained.manifest, columns)
    groups = range(len(reader.group_rows))
    packed = joined([reader.read([group])[group] for group in groups])
    assert packed.times is not None
    if rows is None:
        tested = np.flatnonzero(packed.validation_end < packed.ends - packed.starts)
        rows = np.sort(np.random.default_rng(settings.seed).permutation(tested)[: settings.num_users])
    low, starts = packed.validation_end[rows], packed.starts[rows]
    asked = ask(packed, rows, low, packed.items[starts + low], packed.times[starts + low], model.max_events)
    items, offsets = gather(packed.items.astype(np.int64), starts, starts + low)
    kept = long_enough(asked)
    return Held(asked.take(kept), Seen(items, offsets).of(kept), rows.size - kept.size)


def weights_by_method(
    model: ExplainedNextItem, asked: Questions, settings: Settings, methods: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, float]]:
    """Return the weights (N,) of each method, the seconds that it took, and the largest relative convergence delta."""
    weights: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    deltas: dict[str, float] = {}
    integrate = partial(integrated.attribute, model, asked, n_steps=settings.num_steps, max_steps=settings.max_steps)
    run: dict[str, Callable[[], Any]] = {
        "attention": lambda: attention.attribute(model, asked),
        "rollout": lambda: rollout.attribute(model, asked),
        "gradient_x_input": lambda: gradients.attribute(model, asked),
        "ig_zero": lambda: integrate(zero_baseline(model)),
        "ig_sampled": lambda: integrate(sampled_baselines(model, asked, settings.num_samples, settings.seed)),
        "occlusion": lambda: occlusion.attribute(model, asked),
    }
    for name in methods:
        started = time.perf_counter()
        attribution = run[name]()
        seconds[name] = time.perf_counter() - started
        weights[name] = attribution.values.astype(np.float64)
        if attribution.delta is not None:
            span = np.abs(attribution.scores - attribution.baseline_scores)
            deltas[name] = float(np.median(np.abs(attribution.delta) / np.maximum(span, 1e-6)))
    return weights, seconds, deltas


def all_orders(
    trained: TrainedModel, asked: Questions, weights: dict[str, np.ndarray], seed: int
) -> dict[str, np.ndarray]:
    """Return the orders of all methods and references."""
    return {name: order_of(values, asked.offsets) for name, values in weights.items()} | {
        "random": random_order(asked.keys, asked.offsets, seed),
        "recency": recency_order(asked.offsets),
        "popularity": popularity_order(asked.items, trained.train_events, asked.offsets),
    }


def _faithful(
    name: str, trained: TrainedModel, settings: Settings, maps: dict[str, list[dict[str, np.ndarray]]]
) -> dict[str, Any]:
    model = _next_item(trained)
    held = held_out(model, None, settings)
    scorer = whole_catalogue(model, held.seen)
    asked = held.asked
    on_targets = scorer.score(asked, np.arange(asked.size))
    assert on_targets.places is not None
    asked = asked.with_targets(scorer.top(asked).top_items[:, 0])
    weights, seconds, deltas = weights_by_method(model, asked, settings, settings.methods)
    started = time.perf_counter()
    orders = all_orders(trained, asked, weights, settings.seed)
    how: Any = settings.removal
    measured = measure(scorer, asked, orders, how, pool=asked, seed=settings.seed)
    seconds["measurement"] = time.perf_counter() - started
    result = summarise(measured, name, held.num_short, settings.seed)
    maps.setdefault(name, []).append(_on_items_of_first(name, maps, model, asked, settings))
    return {
        "run": _described(trained),
        "hr@10": float((on_targets.places <= 10).mean()),
        "seconds": seconds,
        "median_relative_delta": deltas,
        "faithfulness": to_json(result),
        "verdicts": [to_json(verdict(result, order)) for order in settings.methods],
        "randomised": [to_json(one) for one in _randomised(trained, asked, settings)],
        "uniform": _uniform(trained, scorer, asked),
    }


def _on_items_of_first(
    name: str,
    maps: dict[str, list[dict[str, np.ndarray]]],
    model: ExplainedNextItem,
    asked: Questions,
    settings: Settings,
) -> dict[str, np.ndarray]:
    """Return the maps of some users about the best items of the first seed of this model, with their offsets and targets."""
    part = asked.part(0, CHECKED_USERS)
    if maps.get(name):
        part = part.with_targets(maps[name][0]["targets"])
    weights, _, _ = weights_by_method(model, part, settings, settings.methods)
    return weights | {"targets": part.targets, "offsets": part.offsets}


def _agreements(maps: dict[str, list[dict[str, np.ndarray]]]) -> dict[str, Any]:
    """Return the agreement over seeds by model."""
    return {
        name: [
            to_json(agreement([one[method] for one in of_seeds], of_seeds[0]["offsets"], method))
            for method in of_seeds[0]
            if method in METHODS
        ]
        for name, of_seeds in maps.items()
        if len(of_seeds) > 1
    }


def _randomised(trained: TrainedModel, asked: Questions, settings: Settings) -> list[Any]:
    """Return the checks with randomised weights, for some users."""
    part = asked.part(0, CHECKED_USERS)

    def weigh_by(method: str) -> Callable[[TrainedModel], np.ndarray]:
        return lambda other: weights_by_method(_next_item(other), part, settings, (method,))[0][method]

    return [randomised_weights(trained, part, weigh_by(method), method, settings.seed) for method in settings.methods]


def _uniform(trained: TrainedModel, scorer: CatalogueScorer, asked: Questions) -> dict[str, Any]:
    uniform = whole_catalogue(_next_item(with_uniform_attention(trained)), scorer.seen)
    return to_json(uniform_attention(scorer, uniform, asked))


def _planted(name: str, trained: TrainedModel, logs: Path, settings: Settings) -> dict[str, Any]:
    """Return how well each order finds the causes of effects among the test events."""
    model = _next_item(trained)
    held = held_out(model, None, replace(settings, num_users=1 << 40))
    causes = pa.concat_tables([pq.read_table(path) for path in sorted((logs / "truth").glob("causes-*.parquet"))])
    asked, cause = effects_of(trained, held.asked, causes, settings)
    chosen = np.flatnonzero(np.isin(held.asked.keys, asked.keys))
    scorer = whole_catalogue(model, held.seen.of(chosen))
    places = scorer.score(asked, np.arange(asked.size)).places
    assert places is not None
    weights, seconds, _ = weights_by_method(model, asked, settings, settings.methods)
    orders = all_orders(trained, asked, weights, settings.seed)
    caused = is_cause(asked, cause)
    known = np.flatnonzero(places <= 10)
    of_known = asked.take(known)
    flags = np.isin(asked.owner, known)
    return {
        "run": _described(trained),
        "hr@10": float((places <= 10).mean()),
        "seconds": seconds,
        "planted": [to_json(one) for one in recoveries(orders, caused, asked.offsets)],
        "planted_known": [
            to_json(one)
            for one in recoveries({key: order[flags] for key, order in orders.items()}, caused[flags], of_known.offsets)
        ],
        "model": name,
    }


def effects_of(
    trained: TrainedModel, asked: Questions, causes: pa.Table, settings: Settings
) -> tuple[Questions, np.ndarray]:
    """Return the questions with targets that are effects with their cause in the history, and the causes (B,)."""
    effects = pa.table(
        {
            "user_id": asked.users,
            "effect_item": trained.item_values.take(pa.array(asked.targets - 1)),
            "number": np.arange(asked.size),
        }
    )
    caused = effects.join(causes, keys=["user_id", "effect_item"], join_type="inner").sort_by("number")
    number = caused.column("number").to_numpy()
    cause = trained.item_ids(pc.cast(caused.column("cause_item"), trained.item_values.type).combine_chunks())
    in_history = (
        np.bincount(asked.owner, asked.items == _spread(cause, number, asked.size)[asked.owner], asked.size) > 0
    )
    kept = in_history[number] & (np.arange(number.size) < settings.num_users)
    return asked.take(number[kept]), cause[kept]


def _spread(values: np.ndarray, numbers: np.ndarray, size: int) -> np.ndarray:
    """Return an array (size,) with values at their numbers, and -1 elsewhere."""
    spread = np.full(size, -1, np.int64)
    spread[numbers] = values
    return spread


def _next_item(trained: TrainedModel) -> ExplainedNextItem:
    model = explained_model(trained)
    if not isinstance(model, ExplainedNextItem):
        raise UserError("faithfulness: rankers have no catalogue to rank; give runs of task = next_item")
    return model


def _described(trained: TrainedModel) -> dict[str, Any]:
    """Return what was trained: the settings that matter for a table."""
    config, encoder = trained.job.config, trained.model.config.encoder
    return {
        "seed": config.run.seed,
        "encoder": encoder.kind,
        "num_blocks": encoder.num_blocks,
        "width": trained.model.width,
        "max_history": trained.model.config.max_history,
        "normalisation": encoder.attention.normalisation,
        "bias": encoder.attention.bias,
        "request_time": trained.model.config.inputs.request_time,
        "step": trained.checkpoint.manifest.step,
        "num_users": trained.manifest.counts.num_users,
        "num_items": trained.num_items,
    }


if __name__ == "__main__":
    main()
