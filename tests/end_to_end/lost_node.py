"""A cluster of two nodes, one of which is lost: what Ray says of it, and where workers can start. For test_lost_node.py."""

import json
import os
import signal
import sys

import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group, remove_placement_group

from cluster.config.run_config import ClusterConfig
from cluster.workers.nodes import alive_nodes, held_resources, room_for, unreachable


def observe() -> dict[str, object]:
    """Return what is seen within a second of the loss of a node with a worker."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    group = placement_group([{"CPU": 1}] * 2)
    assert group.wait(60)
    (raylet,) = second.all_processes["raylet"]
    os.kill(raylet.process.pid, signal.SIGKILL)
    raylet.process.wait()
    nodes = alive_nodes()
    lost = unreachable(nodes)
    seen = {
        "alive": len(nodes),
        "lost": lost == {second.node_id},
        "room": room_for(ClusterConfig(), [node for node in nodes if node.id not in lost], held_resources(group)).free,
    }
    remove_placement_group(group)
    selector = {"ray.io/node-id": f"!in({', '.join(lost)})"}
    starts = placement_group([{"CPU": 1}], bundle_label_selector=[selector]).wait(10)
    ray.shutdown()
    cluster.shutdown()
    return {**seen, "starts": starts}


if __name__ == "__main__":
    print(json.dumps(observe()), file=sys.stderr)
