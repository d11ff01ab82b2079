"""What the settings' tests see of tables: how they are planned, looked up and updated, and how ids become rows."""

import itertools
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from cluster.config.run_config import Config
from sharding.plan import Shard
from sharding.planning.costs import predict
from sharding.planning.planned_tables import PlannedTables
from sharding.tables.apply_plan import _parameter_sharding
from sharding.world import World
from tests.settings.entry import attribute
from tests.settings.lab import Lab
from tests.settings.observations.models import model_of
from tests.settings.observations.training import trained, training_of
from tests.support.steps import first_step
from trainer.config.job import SILENT, Job
from trainer.data.stream.order import Position
from trainer.loop.train import Training
from trainer.placement.plan import plan_tables

Observe = Callable[[Lab, Config], Any]


def planned(lab: Lab, config: Config) -> PlannedTables:
    """Return the plan of all tables for the config's workers, of which none is started."""
    return plan_tables(lab.job(config), lab.manifest(config), config.cluster.num_workers, config.cluster.device)


def in_plan(name: str) -> Observe:
    """Return the observation of what the plan says of the item table."""

    def observe(lab: Lab, config: Config) -> Any:
        return getattr(planned(lab, config).plan.tables["item"], name)

    observe.__name__ = f"the plan's {name}"
    return observe


def in_load(name: str) -> Observe:
    """Return the observation of what the plan is made from, of the item table."""
    return attribute(
        lambda lab, config: next(x for x in planned(lab, config).loads if x.name == "item"), name, "the load's"
    )


def of_devices(name: str) -> Observe:
    """Return the observation of what the plan takes the devices to be like."""
    return attribute(lambda lab, config: planned(lab, config).topology, name, "the devices'")


def shards(lab: Lab, config: Config) -> list[Shard]:
    """Return the shards of the item table."""
    return planned(lab, config).plan.shards("item")


def shard_widths(lab: Lab, config: Config) -> set[int]:
    """Return the numbers of columns of the item table's shards."""
    return {shard.num_columns for shard in shards(lab, config)}


def cached_share(lab: Lab, config: Config) -> float | None:
    """Return the part of the item table that TorchRec is set to cache."""
    sharding = _parameter_sharding(planned(lab, config).plan, "item", config.tables["item"])
    return None if sharding.cache_params is None else sharding.cache_params.load_factor


def device_bytes(lab: Lab, config: Config) -> float:
    """Return the memory that the plan expects the item table to take of a device."""
    planned_tables = planned(lab, config)
    predicted = predict(
        planned_tables.plan, planned_tables.loads, planned_tables.topology, planned_tables.communication
    )
    return float(predicted.memory_bytes.max())


def item_rows(lab: Lab, config: Config) -> Tensor:
    """Return all rows of the item table before training."""
    model = model_of(lab, config)
    rows: Tensor = model.built.model.look_up(model.built.catalogue.known)["item"]
    return rows.detach().clone()


def widths(lab: Lab, config: Config) -> dict[str, int]:
    """Return the widths of looked-up rows by table."""
    return {name: rows.shape[1] for name, rows in model_of(lab, config).rows.items()}


def updates(lab: Lab, config: Config) -> list[Tensor]:
    """Return the changes that the first two steps make to the rows of the item table."""
    training = training_of(lab, lab.job(config), [])
    known = training.built.catalogue.known
    steps = training.stream.steps(Position(0, 0), 1)
    training.built.model.train()
    rows = [training.built.model.look_up(known)["item"].detach().clone()]
    for _ in range(2):
        training._train(next(steps))
        rows.append(training.built.model.look_up(known)["item"].detach().clone())
    return [after - before for before, after in itertools.pairwise(rows)]


def first_update(lab: Lab, config: Config) -> Tensor:
    """Return the change that the first step makes to the rows of the item table."""
    return lab.see(updates, config)[0]


def decayed_by_hand(decay: float) -> Observe:
    """Return the first change by hand: row-wise Adagrad on a gradient to which this times each row is added."""

    def by_hand(lab: Lab, config: Config) -> Tensor:
        decayed = _gradient(lab, config) + decay * lab.see(item_rows, config)
        root, table = decayed.square().mean(dim=1, keepdim=True).sqrt(), config.tables["item"]
        return -table.learning_rate * decayed / (root + table.eps)

    return by_hand


def _gradient(lab: Lab, config: Config) -> Tensor:
    """Return the gradient of the first step in the rows of the item table, by plain gradient descent at a rate of one."""
    plain = {"optimizer": "sgd", "learning_rate": 1.0, "weight_decay": 0.0}
    table = config.tables["item"].model_copy(update=plain)
    return -lab.see(first_update, config.model_copy(update={"tables": {**config.tables, "item": table}}))


def optimizer_numbers(lab: Lab, config: Config) -> int:
    """Return how many numbers the optimizer of the item table keeps."""
    states = training_of(lab, lab.job(config), []).optimizers.fused.state_dict()["state"]
    tensors = [value for state in states.values() for value in state.values() if isinstance(value, ShardedTensor)]
    return sum(math.prod(tensor.size()) for tensor in tensors)


def _sent(world: World, job: Job) -> tuple[Tensor, list[Tensor]]:
    """Return the rows of the item table as a rank receives them, and the changes of the first step."""
    training = Training(job, world, SILENT)
    training.built.model.train()
    known = training.built.catalogue.known
    before = training.built.model.look_up(known)["item"].detach().clone()
    training._train(first_step(training))
    return before, training.built.model.look_up(known)["item"].detach() - before


def rows_sent(lab: Lab, config: Config) -> Tensor:
    """Return the rows of the item table as the first of two ranks receives them."""
    rows: Tensor = lab.on_two_ranks(_sent, lab.job(config))[0][0]
    return rows


def update_sent(lab: Lab, config: Config) -> Tensor:
    """Return the change of the first step on two ranks, with plain gradient descent that of the gradients as they arrive."""
    change: Tensor = lab.on_two_ranks(_sent, lab.job(config))[0][1]
    return change


# Observations that need rank processes.
ON_TWO_RANKS = (rows_sent, update_sent)


def looked_up_as_bags(lab: Lab, config: Config) -> list[str]:
    """Return the features with rows that are summed where they are stored."""
    return sorted(model_of(lab, config).batch.items.bags)


def num_rows(table: str) -> Observe:
    """Return the observation of the number of rows of a table."""

    def observe(lab: Lab, config: Config) -> int:
        return planned(lab, config).plan.tables[table].num_rows

    observe.__name__ = f"the rows of table {table}"
    return observe


def ids_kind(lab: Lab, config: Config) -> str:
    """Return how values of the table `colour` become rows."""
    built = model_of(lab, config).built
    if "colour" in built.dynamic.states:
        return "dynamic"
    return "vocabulary" if "colour" in lab.manifest(config).vocabularies else "hash"


def ids_with_rows(lab: Lab, config: Config) -> list[int]:
    """Return the ids of the dynamic table `colour` that have a row after training, in the order of the rows."""
    ids = lab.see(trained, config).state["ids.colour.ids"].tolist()
    return [int(number) for number in ids[: config.tables["colour"].ids.num_rows]]


def _counted(lab: Lab, config: Config, name: str) -> list[float]:
    lines = [line for line in lab.see(trained, config).lines if line["kind"] == "train"]
    return [line[f"ids.colour.{name}"] for line in lines]


def ids_sum(name: str) -> Observe:
    """Return the observation of a number that is counted of the dynamic table `colour`, summed over all steps."""

    def observe(lab: Lab, config: Config) -> float:
        return sum(_counted(lab, config, name))

    observe.__name__ = f"ids.colour.{name}"
    return observe


def most_ids(name: str) -> Observe:
    """Return the observation of the largest of these numbers."""

    def observe(lab: Lab, config: Config) -> float:
        return max(_counted(lab, config, name))

    observe.__name__ = f"most ids.colour.{name}"
    return observe
