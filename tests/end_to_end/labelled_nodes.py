"""A cluster of two nodes, one of them with a label: where tasks and groups of workers start. For test_labelled_nodes.py."""

import json
import sys
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group, placement_group_table

from cluster.config.run_config import ClusterConfig
from cluster.ray_cluster.room import room_on
from cluster.ray_cluster.session import nodes_here
from cluster.ray_cluster.task_pool import TaskLimit, run_tasks

LABELS = {"group": "in(train, other)"}


def node_of_task(argument: Any, number: int) -> str:
    """Return the id of the node that runs this task."""
    return str(ray.get_runtime_context().get_node_id())


def observe() -> dict[str, object]:
    """Return what Shoal counts, and what Ray does."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    second = cluster.add_node(num_cpus=2, labels={"group": "train"})
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    config = ClusterConfig.model_validate({"address": "auto", "placement": {"labels": LABELS}})
    placed = {node for _, node in run_tasks(node_of_task, None, range(4), TaskLimit(2, LABELS))}
    group = placement_group([{"CPU": 1}] * 2, bundle_label_selector=[LABELS] * 2)
    started = group.wait(60)
    seen = {
        "room": room_on(nodes_here(), config),
        "room_without_labels": room_on(nodes_here(), ClusterConfig(address="auto")),
        "tasks": placed == {second.node_id},
        "started": started,
        "group": set(placement_group_table(group)["bundles_to_node_id"].values()) == {second.node_id},
        "third": placement_group([{"CPU": 1}], bundle_label_selector=[LABELS]).wait(3),
    }
    ray.shutdown()
    cluster.shutdown()
    return seen


if __name__ == "__main__":
    print(json.dumps(observe()), file=sys.stderr)
