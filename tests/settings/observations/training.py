"""What the settings' tests see of a training, from its first batch to the files that it leaves."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from cluster.config.run_config import Config
from models import devices
from sharding.tables.early_requests import send_requests
from sharding.world import World
from tests.settings.lab import Lab
from tests.settings.observations.models import fill_by_name, model_of
from tests.support.steps import first_step, observe_steps
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.config.job import SILENT, Channel, Job, Outcome
from trainer.data.dataset.manifest import read_manifest
from trainer.data.stream.examples import Examples, examples_of
from trainer.data.stream.order import Position
from trainer.errors import CheckpointError, NonFiniteLossError
from trainer.loop.build import build_model, build_optimizers, load_for_evaluation
from trainer.loop.days import DailyTimetable
from trainer.loop.same_run import check_same_run
from trainer.loop.step_result import StepResult
from trainer.loop.train import Training
from trainer.metrics_log import read_metrics
from trainer.placement.loads import demand_of
from trainer.tasks.task import OnBatch


@dataclass
class Trained:
    """A training that was run to its end. rates, table_rates: step sizes at each step; weights: one dense weight after each."""

    job: Job
    outcome: Outcome | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    table_rates: list[float] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    results: list[StepResult] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)  # what a checkpoint holds besides weights

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl."""
        return read_metrics(self.job.run_dir / "metrics.jsonl")


WEIGHT = "encoder.final_norm.weight"


def trained(lab: Lab, config: Config) -> Trained:
    """Train to the end."""
    run = Trained(lab.job(config))
    training = training_of(lab, run.job, run.events)
    weight = dict(training.built.model.named_parameters()).get(WEIGHT, torch.zeros(()))
    run.weights.append(weight.detach().clone())

    def record(batch: Any, number: int, result: StepResult) -> None:
        run.results.append(result)
        run.rates += {group["lr"] for group in training.optimizers.dense.param_groups}
        run.table_rates += {group["lr"] for group in training.optimizers.fused.param_groups}
        run.weights.append(weight.detach().clone())

    observe_steps(training, record)
    run.outcome = training.run()
    run.state = training.built.state()
    return run


def training_of(lab: Lab, job: Job, events: list[dict[str, Any]], stop_after: int | None = None) -> Training:
    """Return a training that is asked to stop after so many steps, and keeps what it tells the driver in `events`."""
    polls: list[None] = []

    def stop_requested() -> bool:
        polls.append(None)
        return stop_after is not None and len(polls) >= stop_after

    return Training(job, lab.world, Channel(send=events.append, stop_requested=stop_requested))


def steps_trained(lab: Lab, config: Config) -> int:
    """Return the number of steps of the whole training."""
    return lab.see(trained, config).outcome.step


def rates(lab: Lab, config: Config) -> list[float]:
    """Return the step size of dense weights at every step."""
    return lab.see(trained, config).rates


def table_rates(lab: Lab, config: Config) -> list[float]:
    """Return the step size of the item table at every step."""
    return lab.see(trained, config).table_rates


def losses(lab: Lab, config: Config) -> list[float]:
    """Return the loss of every step."""
    return [result.loss for result in lab.see(trained, config).results]


def ids_sent_early(lab: Lab, config: Config) -> bool:
    """Return whether a step sends the look-ups of the next one."""
    with mock.patch("trainer.loop.train.send_requests", wraps=send_requests) as send:
        training_of(lab, lab.job(config), [], stop_after=1).run()
    return send.called


KERNELS = ("softmax", "attention", "layers", "feed_forward", "projections")


def kernels_that_take_nothing(offers: list[str]) -> Any:
    """Return compiled kernels that note their kind when vectors are offered to them. No compiler is needed."""
    kernels = SimpleNamespace(
        **{kind: SimpleNamespace(takes=lambda *given, kind=kind: bool(offers.append(kind))) for kind in KERNELS}
    )
    kernels.layers.feed_forward, kernels.layers.projections = kernels.feed_forward, kernels.projections
    return kernels


def kernels_asked(lab: Lab, config: Config) -> bool:
    """Return whether the first step offers vectors to the compiled kernels of all kinds."""
    offers: list[str] = []
    with mock.patch("trainer.loop.train.kernels_of_ranks", return_value=kernels_that_take_nothing(offers)):
        training_of(lab, lab.job(config), [], stop_after=1).run()
    return {*offers} == {*KERNELS}


def tf32_in_a_step(lab: Lab, config: Config) -> bool:
    """Return whether products of GPUs may be rounded to TF32 while a step computes its loss. They may not before it."""
    training = training_of(lab, lab.job(config), [], stop_after=1)
    model = training.built.model
    loss_of = model.loss
    allowed: list[bool] = []

    def loss(*given: Any) -> Tensor:
        allowed.append(torch.backends.cuda.matmul.allow_tf32)
        result: Tensor = loss_of(*given)
        return result

    model.loss = loss
    assert not torch.backends.cuda.matmul.allow_tf32
    training.run()
    assert not torch.backends.cuda.matmul.allow_tf32
    return allowed[0]


def layers_compiled(lab: Lab, config: Config) -> int:
    """Return how many layers are compiled at their first call. No compiler is needed, since there is no call."""
    with mock.patch("trainer.loop.compiled_layers.no_compiler_reason", return_value=None):
        training = training_of(lab, lab.job(config), [])
    training.progress.close()
    return sum(module._compiled_call_impl is not None for module in training.built.model.modules())


def validated_at(lab: Lab, config: Config) -> list[int]:
    """Return the steps after which the validation split was evaluated."""
    return [line["step"] for line in lab.see(trained, config).lines if line["kind"] == "validation"]


def validation_metrics(lab: Lab, config: Config) -> list[str]:
    """Return the names of the metrics that training reports of the validation split."""
    [line, *_] = [line for line in lab.see(trained, config).lines if line["kind"] == "validation"]
    return sorted(line.keys() - {"step", "kind", "seconds"})


def logged_at(lab: Lab, config: Config) -> list[int]:
    """Return the steps that metrics.jsonl has a line of."""
    return [line["step"] for line in lab.see(trained, config).lines if line["kind"] == "train"]


def saved_at(lab: Lab, config: Config) -> list[int]:
    """Return the steps after which a checkpoint was saved."""
    return [event["step"] for event in lab.see(trained, config).events if event["kind"] == "checkpoint"]


def checkpoints_left(lab: Lab, config: Config) -> list[str]:
    """Return the checkpoints that are there at the end, the newest first."""
    return [path.name for path in checkpoint_folder.committed(lab.see(trained, config).job.checkpoints_dir)]


def steps_in_sample_log(lab: Lab, config: Config) -> int:
    """Return the number of steps with histories in the sample log of the run folder."""
    path = lab.see(trained, config).job.run_dir / "sample_log" / "rank-0.jsonl"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def best_metric(lab: Lab, config: Config) -> str | None:
    """Return the metric by which the best checkpoint was chosen."""
    best = checkpoint_folder.read_best(lab.see(trained, config).job.checkpoints_dir)
    return None if best is None else best["metric"]


def best_value(lab: Lab, config: Config) -> float | None:
    """Return the best value of the metric that early stopping looks at."""
    return lab.see(trained, config).outcome.best_value


def largest_validated(metric: str) -> Callable[[Lab, Config], float]:
    """Return the largest value that any evaluation of the validation split gave a metric."""

    def by_hand(lab: Lab, config: Config) -> float:
        return max(line[metric] for line in lab.see(trained, config).lines if line["kind"] == "validation")

    return by_hand


def evaluations_until_stopped(lab: Lab, config: Config, stop_after: int | None = None) -> int:
    """Return after how many evaluations training stops where no evaluation is better than the first."""
    job, count = lab.job(config), [0]

    class Worse:
        """Metrics that are worse each time."""

        def mean_metrics(self, model: Any, on_batch: OnBatch) -> dict[str, float]:
            count[0] += 1
            return {"ndcg@10": -float(count[0])}

    for limit in (stop_after, None) if stop_after else (None,):
        training = training_of(lab, job, [], limit)
        training.evaluations.evaluator = Worse()
        training.run()
    return count[0]


def evaluations_until_stopped_and_resumed(lab: Lab, config: Config) -> int:
    """Return the same where training was stopped on request inside the third epoch, and resumed."""
    return evaluations_until_stopped(lab, config, stop_after=7)


def steps_until_given_up(lab: Lab, config: Config) -> int:
    """Return after how many steps training gives up where no loss is finite."""
    training = training_of(lab, lab.job(config), [])
    infinite = torch.tensor(float("inf"))
    with mock.patch.object(training.built.model, "loss", lambda rows, batch: rows["item"].sum() * 0.0 + infinite):
        try:
            training.run()
        except NonFiniteLossError:
            return training.state.step
    return -1


def weights_evaluated(lab: Lab, config: Config) -> Tensor:
    """Return one dense weight as the evaluate stage loads it from the newest checkpoint."""
    job = lab.see(trained, config).job
    built = build_model(job, read_manifest(job.dataset_dir), lab.world)
    found, _ = checkpoint_folder.newest(job.checkpoints_dir)
    assert found is not None
    load_for_evaluation(found, built)
    return dict(built.model.named_parameters())[WEIGHT].detach()


def averaged_by_hand(decay: float) -> Callable[[Lab, Config], Tensor]:
    """Return the moving average of that weight with this decay, which is shorter at the beginning."""

    def by_hand(lab: Lab, config: Config) -> Tensor:
        first, *others = lab.see(trained, config).weights
        average = first
        for number, weight in enumerate(others):
            used = min(decay, (1 + number) / (10 + number))
            average = used * average + (1.0 - used) * weight
        return average

    return by_hand


def rows_of_first_batch(lab: Lab, config: Config) -> list[int]:
    """Return the ids of the histories of the first global batch."""
    ids: list[int] = model_of(lab, config).batch.row_ids.tolist()
    return ids


def streams_of_order(lab: Lab, config: Config) -> int:
    """Return the number of streams with which the batches of a training are made."""
    streams: int = model_of(lab, config).stream.batches.streams
    return streams


def items_of_two_workers(lab: Lab, config: Config) -> float:
    """Return how many of 1,000 items each of two workers looks up in a step, by the plan; histories hold few of them."""
    return round(demand_of(config.model).of_step(config.train, 2, 1000, None).items, -2)


def batch_rows(lab: Lab, config: Config) -> int:
    """Return the number of histories of the first global batch."""
    return len(rows_of_first_batch(lab, config))


def largest_batch(lab: Lab, config: Config) -> int:
    """Return the number of input events of the largest batch of an epoch."""
    model = model_of(lab, config)
    return max(step.batch.layout.num_events for step in model.stream.steps(Position(0, 0), 1))


def shares_of_four_workers(lab: Lab, config: Config) -> list[list[int]]:
    """Return the positions of the examples that each of four workers would train in the first batches."""
    stream = model_of(lab, config).stream
    examples = stream.batches.examples
    if isinstance(examples, Examples):  # which one worker reads without lengths
        examples = examples_of(stream.reader, examples.max_history, config.train.long_histories, with_lengths=True)
    ranks = (replace(stream.batches, examples=examples, rank=rank, world_size=4) for rank in range(4))
    return [next(of.chunks(Position(0, 0), 1)).chosen.position.tolist() for of in ranks]


def largest_piece(lab: Lab, config: Config) -> int:
    """Return the number of input events of the largest piece that the first batch is computed in."""
    model = model_of(lab, config)
    return max(part.layout.num_events for part in model.built.task.parts_of(model.batch))


def events_trained(lab: Lab, config: Config) -> int:
    """Return the number of input events of an epoch."""
    model = model_of(lab, config)
    return sum(step.batch.layout.num_events for step in model.stream.steps(Position(0, 0), 1))


def dense_optimizer(lab: Lab, config: Config) -> str:
    """Return the class of the dense optimizer."""
    model = model_of(lab, config)
    return type(build_optimizers(model.built, config.train).dense._optimizer).__name__


def dense_groups(lab: Lab, config: Config) -> list[dict[str, Any]]:
    """Return the settings of the parameter groups of the dense optimizer, with the numbers of dimensions of their weights."""
    model = model_of(lab, config)
    groups = build_optimizers(model.built, config.train).dense.param_groups
    names = ("lr", "betas", "eps", "weight_decay")
    return [
        {"dims": sorted({p.dim() for p in group["params"]}), **{name: group.get(name) for name in names}}
        for group in groups
    ]


def dropout_seeds(lab: Lab, config: Config) -> list[int]:
    """Return what the random numbers of the first step's dropout are drawn from."""
    return seeds_of_step(lab.world, lab.job(config))


def seeds_of_step(world: World, job: Job) -> list[int]:
    """Return the same on a rank."""
    training, seeds = Training(job, world, SILENT), list[int]()
    item = first_step(training)
    with mock.patch.object(devices, "seed", lambda device, number: seeds.append(number)):
        training._train(item)
    return seeds


def first_move(lab: Lab, config: Config) -> float:
    """Return the L2 norm of the change that the first step makes to all weights, dense and of the table."""
    run = lab.job(config)
    training = training_of(lab, run, [])
    tables = [p for p in training.built.model.tables.parameters() if p.numel()]
    dense = training.optimizers.dense_parameters
    fill_by_name({n: p for n, p in training.built.model.named_parameters() if any(p is d for d in dense)})
    before = [p.detach().clone() for p in (*tables, *dense)]
    item = first_step(training)
    training.built.model.train()
    training._train(item)
    moved = zip(before, (*tables, *dense), strict=True)
    return float(torch.stack([(new.detach() - old).square().sum() for old, new in moved]).sum().sqrt())


def days_planned(lab: Lab, config: Config) -> list[int]:
    """Return the steps at the end of each day of a training by days, or of each epoch."""
    training = training_of(lab, lab.job(config), [])
    ends: list[int] = training.epoch_ends.tolist()
    return ends


def first_day(lab: Lab, config: Config) -> str:
    """Return the moment at which the first day that is trained begins."""
    training = training_of(lab, lab.job(config), [])
    timetable = training.timetable
    assert isinstance(timetable, DailyTimetable)
    return str(timetable.days.calendar.name_of(timetable.days.first))


def kinds_logged(lab: Lab, config: Config) -> list[str]:
    """Return the kinds of lines of metrics.jsonl."""
    return sorted({line["kind"] for line in lab.see(trained, config).lines})


def after_logs_were_appended(lab: Lab, config: Config) -> str:
    """Return what becomes of a checkpoint of the dataset before logs were appended to it."""
    job = lab.job(config)
    manifest: Any = SimpleNamespace(digest="now", grown_from=("before",))
    saved: Any = SimpleNamespace(identity=job.identity, dataset_digest="before", days=None)
    try:
        check_same_run(StoredCheckpoint(Path("step_000000001"), saved), job, manifest)
    except CheckpointError:
        return "refused"
    return "resumed"
