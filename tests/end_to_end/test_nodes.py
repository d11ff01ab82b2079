"""Nodes that are taken back, lost and added while a run trains: the group shrinks and grows, and loses no example."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from tests.end_to_end.commands import finish, shoal
from tests.end_to_end.ray_head import Head, add_node, end_family, ray_head
from tests.end_to_end.watched import WAIT_SECONDS, recovered, report_restarts, step_of, trained_rows, wait_for
from trainer.checkpoint import folder as checkpoint_folder
from trainer.data.dataset.manifest import read_manifest
from trainer.fault_points import VARIABLE
from trainer.metrics_log import read_metrics

pytestmark = [pytest.mark.faults, pytest.mark.timeout(2400)]
SLOW = [{"name": "slow", "point": "data", "rank": 0, "step": 26, "action": "slow", "seconds": 1.0, "repeats": True}]
# With Adam a rounding error of a tiny gradient moves a weight by a whole learning rate.
SGD = {"train.optimizer": "sgd", "tables.item.optimizer": "sgd", "model.encoder.dropout": 0.0}
DEADLINE = 30  # seconds of a drain
FIND_NODE = """
import ray
ray.init(address={address!r}, log_to_driver=False)
print([node["NodeID"] for node in ray.nodes() if node["Alive"] and "node:__internal_head__" not in node["Resources"]][0])
"""


@pytest.fixture
def slow(tmp_path: Path) -> dict[str, str]:
    """Return the environment of nodes on which steps take a second."""
    (tmp_path / "faults.json").write_text(json.dumps(SLOW))
    return {VARIABLE: str(tmp_path / "faults.json")}


@pytest.fixture
def small_head(slow: dict[str, str]) -> Iterator[Head]:
    """Yield a head node with room for one worker."""
    with ray_head(num_cpus=1, environment=slow) as head:
        yield head


def ray_environment() -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "token"}


def other_node(head: Head) -> str:
    """Return Ray's id of the node that is not the head."""
    finished = subprocess.run(
        [sys.executable, "-c", FIND_NODE.format(address=head.address)],
        capture_output=True,
        text=True,
        check=True,
        env=ray_environment(),
        timeout=120,
    )
    return finished.stdout.split()[-1]


def drain(head: Head, node: str) -> None:
    """Announce that the cluster takes back a node."""
    ray = Path(sys.executable).with_name("ray")
    subprocess.run(
        [
            *(str(ray), "drain-node", f"--address={head.address}", f"--node-id={node}"),
            *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot instance"),
            f"--deadline-remaining-seconds={DEADLINE}",
        ],
        check=True,
        capture_output=True,
        env=ray_environment(),
        timeout=120,
    )


def num_cpus(head: Head) -> float:
    """Return the CPUs of all nodes that are alive."""
    script = (
        f"import ray; ray.init(address={head.address!r}, log_to_driver=False); print(ray.cluster_resources()['CPU'])"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=ray_environment(), timeout=120
    )
    return float(finished.stdout.split()[-1])


@pytest.fixture
def dataset(config: Path, tmp_path: Path) -> Path:
    """Return a dataset for all runs of a test."""
    folder = tmp_path / "dataset"
    settings = ["--set", f"run.dir={tmp_path / 'prepared'}", "--set", f"run.dataset={folder}"]
    code, _, err = finish(shoal("prepare", str(config), *settings), WAIT_SECONDS)
    assert code == 0, err
    return folder


def settings_of(run_dir: Path, dataset: Path, **more: object) -> list[str]:
    settings = {"run.dir": run_dir, "run.dataset": dataset, **SGD, **more}
    return [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]


def losses(run_dir: Path) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in read_metrics(run_dir / "metrics.jsonl") if row["kind"] == "train"])


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the newest checkpoint by name."""
    values: dict[str, object] = {}
    newest = checkpoint_folder.committed(run_dir / "checkpoints")[0]
    _load_state_dict(values, FileSystemReader(newest), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def test_drained_lost_and_added_nodes_lose_no_example(
    config: Path, dataset: Path, small_head: Head, slow: dict[str, str], tmp_path: Path
) -> None:
    """2 nodes, one of which is drained; 1 node; 2 nodes, one of which is lost; 1 node."""
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    second = add_node(small_head, environment=slow)
    recovery = {"resize_seconds": 5.0, "failures_per_hour": 1, "preemptions_per_hour": 1}
    arguments = settings_of(
        run_dir,
        dataset,
        **{"cluster.address": small_head.address, "cluster.num_workers": 2, "cluster.min_workers": 1},
        **{"checkpoint.every_steps": 1000},  # so that the next one before the end of an epoch is that of the drain
        **{f"cluster.recovery.{name}": value for name, value in recovery.items()},
    )
    command = None
    try:
        wait_for("two nodes", lambda: num_cpus(small_head) == 2.0)
        node = other_node(small_head)
        command = shoal("train", str(config), *arguments, "--json", environment={"RAY_AUTH_MODE": "token"})
        wait_for("step 32, after the end of an epoch", lambda: step_of(run_dir) >= 32, command)
        saved = set(checkpoint_folder.committed(run_dir / "checkpoints"))
        drain(small_head, node)
        wait_for(
            "a checkpoint before the node is taken back",
            lambda: set(checkpoint_folder.committed(run_dir / "checkpoints")) - saved,
            command,
        )
        just_in_time = max(set(checkpoint_folder.committed(run_dir / "checkpoints")) - saved)
        wait_for("training on one node", recovered(run_dir, 1), command)
        end_family(second)
        second = add_node(small_head, environment=slow)
        wait_for("training on two nodes", recovered(run_dir, 2), command)
        end_family(second)
        wait_for("training after the loss of a node", recovered(run_dir, 3), command)
        code, _, err = finish(command, 600.0)
    finally:
        for process in (second, *([] if command is None else [command])):
            if process.poll() is None:
                end_family(process)  # type: ignore[arg-type]
    assert code == 0, err
    drained, grown, lost = report_restarts(run_dir)
    assert [restart.cause for restart in (drained, grown, lost)] == ["preemption", "resize", "failure"]
    assert "the cluster takes back" in err
    assert "was lost: its node does not answer" in lost.text
    assert f"resumed from {just_in_time}" in err
    assert (drained.rows, grown.rows) == (0, 0)  # a checkpoint was saved just in time
    check_against_undisturbed(config, dataset, run_dir, whole)


def check_against_undisturbed(config: Path, dataset: Path, run_dir: Path, whole: Path) -> None:
    """Compare examples, losses and weights with those of a run on two workers to the end."""
    code, _, err = finish(shoal("train", str(config), *settings_of(whole, dataset)), WAIT_SECONDS)
    assert code == 0, err
    epochs = 6
    num_rows = read_manifest(dataset).counts.num_users
    assert trained_rows(run_dir) == trained_rows(whole)
    assert set(trained_rows(run_dir).values()) == {epochs}
    assert len(trained_rows(run_dir)) == num_rows
    torch.testing.assert_close(losses(run_dir), losses(whole), rtol=1e-5, atol=0.0)
    expected = weights(whole)
    for name, tensor in weights(run_dir).items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
