"""Room for workers on nodes: which nodes may hold them, how many fit, and what is missing. Imports no ray.

A worker needs its resources on one node, and a node with the labels of cluster.placement.labels. Ray accepts a request that the
cluster can never fulfil, and leaves it pending.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.config.placement import PlacementStrategy, condition_of
from cluster.config.run_config import ClusterConfig

NAMED_NODES = 8  # in a message
Resources = Mapping[str, float]
Labels = Mapping[str, str]


@dataclass(frozen=True)
class NodeRoom:
    """A node that is alive, and what it offers."""

    # The address of its machine.
    ip: str
    # Amount of each resource, such as CPU and GPU.
    resources: Resources
    labels: Labels = field(default_factory=dict)


def matches(labels: Labels, selector: Labels) -> bool:
    """Return whether a node has the labels of a selector. A label that the node lacks has none of the values, as Ray sees it."""
    for name, text in selector.items():
        wanted, values = condition_of(text)
        if (labels.get(name) in values) != wanted:
            return False
    return True


def workers_on(resources: Resources, each: Resources) -> int:
    """Return how many workers fit on a node. each: the resources of one worker; 0 of one means that it is not needed."""
    return min((int(resources.get(name, 0.0) // number) for name, number in each.items() if number), default=0)


def of_strategy(numbers: Iterable[int], strategy: PlacementStrategy) -> int:
    """Return how many workers fit on nodes. numbers: how many of them each node could hold."""
    of_nodes = (_at_most(number, strategy) for number in numbers)
    return max(of_nodes, default=0) if strategy == "strict_pack" else sum(of_nodes)


def _at_most(number: int, strategy: PlacementStrategy) -> int:
    """Return how many workers a strategy puts on a node that could hold `number`."""
    return min(1, number) if strategy == "strict_spread" else number


def room_on(nodes: Iterable[NodeRoom], config: ClusterConfig) -> int:
    """Return how many workers of a cluster config the nodes can hold."""
    selector = config.placed.labels
    numbers = (workers_on(node.resources, config.per_worker) for node in nodes if matches(node.labels, selector))
    return of_strategy(numbers, config.placed.strategy)


def sets_on(nodes: Sequence[NodeRoom], groups: Sequence[ClusterConfig], most: int) -> int:
    """Return how many times all groups of workers fit at once, at most `most`; each group with all its workers."""
    # Nodes that fewer groups could use come first, so that no group takes the only place of another.
    uses = [sum(room_on([node], group) > 0 for group in groups) for node in nodes]
    nodes = [node for _, node in sorted(zip(uses, nodes, strict=True), key=lambda pair: pair[0])]
    left = [dict(node.resources) for node in nodes]
    for number in range(most):
        for group in groups:
            if not _take(left, nodes, group):
                return number
    return most


def _take(left: list[dict[str, float]], nodes: Sequence[NodeRoom], group: ClusterConfig) -> bool:
    """Subtract the resources of a group from what is left of the nodes, the first ones first. False: it does not fit."""
    placement, missing = group.placed, group.num_workers
    for resources, node in zip(left, nodes, strict=True):
        room = workers_on(resources, group.per_worker) if matches(node.labels, placement.labels) else 0
        number = min(missing, _at_most(room, placement.strategy))
        if placement.strategy == "strict_pack" and number < missing:
            continue
        for name, each in group.per_worker.items():
            resources[name] = resources.get(name, 0.0) - number * each
        missing -= number
        if not missing:
            return True
    return False


def resource_problem(config: ClusterConfig, nodes: Sequence[NodeRoom]) -> str | None:
    """Return which resources are missing for the workers, or None if they fit.

    A cluster that adds nodes by itself is not judged by the nodes that it has now (cluster.autoscaling).
    """
    if config.autoscaling and config.address is not None:
        return None
    room = room_on(nodes, config)
    fewest = config.num_workers if config.min_workers is None else config.min_workers
    if room >= fewest:
        return None
    placement = config.placed
    asked = " and ".join(_asked(name, number) for name, number in config.per_worker.items() if number)
    if placement.strategy == "strict_spread":
        asked += " on a node of its own"
    text = f"{fewest} workers with {asked} each"
    if placement.strategy == "strict_pack":
        text += ", all on one node,"
    chosen = [node for node in nodes if matches(node.labels, placement.labels)]
    have = ", ".join(f"{node.ip}: {_offered(node.resources, config.per_worker)}" for node in chosen[:NAMED_NODES])
    more = f", and {len(chosen) - NAMED_NODES} more nodes" if len(chosen) > NAMED_NODES else ""
    labelled = f"nodes with the labels {described(placement.labels)}" if placement.labels else "nodes"
    remedies = "cluster.num_workers, cluster.cpus_per_worker or cluster.gpus_per_worker"
    if placement.labels or placement.resources or placement.strategy.startswith("strict"):
        remedies += ", change cluster.placement"
    return (
        f"{text} do not fit: its {labelled} ({have or 'none'}{more}) have room for {room}, so {fewest - room} more would wait for "
        f"ever; lower {remedies}, add nodes, or set cluster.autoscaling = true if the cluster adds nodes by itself"
    )


def evaluation_problem(config: ClusterConfig, nodes: Sequence[NodeRoom]) -> str | None:
    """Return a message if the workers of concurrent evaluation do not fit in addition to those of the training, else None.

    All workers of the training count: a smaller group would grow into the room of the others.
    """
    evaluation = config.of_evaluation
    if evaluation is None or (config.autoscaling and config.address is not None):
        return None
    groups = (config, evaluation)
    if any(sets_on(nodes, order, 1) for order in (groups, groups[::-1])):
        return None
    room = room_on(nodes, evaluation)
    return (
        f"cluster.evaluation.num_workers = {evaluation.num_workers} in addition to cluster.num_workers = {config.num_workers} do "
        f"not fit: without the workers of the training there is room for {room}; lower them, add nodes, change their placement, or "
        "set cluster.evaluation.num_workers = 0, so that the workers of the training evaluate"
    )


def _asked(name: str, number: float) -> str:
    return f"{number:g} {name}{'s' * (number > 1)}" if name in ("CPU", "GPU") else f"{name} {number:g}"


def _offered(resources: Resources, each: Resources) -> str:
    amounts = {name: resources.get(name, 0.0) for name, number in each.items() if number}
    return " and ".join(
        f"{amount:g} {name}s" if name in ("CPU", "GPU") else f"{name} {amount:g}" for name, amount in amounts.items()
    )


def described(labels: Labels) -> str:
    """Return label conditions for people."""
    return ", ".join(f"{name} = {text}" for name, text in labels.items())
