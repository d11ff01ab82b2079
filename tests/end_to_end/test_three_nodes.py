"""Three nodes: two train, and the third evaluates meanwhile. The third is lost and replaced, then one that trains is lost."""

from pathlib import Path

import pytest

from tests.end_to_end.commands import finish, shoal
from tests.end_to_end.ray_head import add_node, end_family, ray_head
from tests.end_to_end.test_nodes import check_against_undisturbed, dataset, num_cpus, settings_of, slow
from tests.end_to_end.watched import recovered, report_restarts, step_of, wait_for
from trainer.loop.validations import read_validations
from trainer.metrics_log import read_metrics

__all__ = ["dataset", "slow"]  # fixtures

pytestmark = [pytest.mark.faults, pytest.mark.timeout(2400)]
DUE = [30, 60, 90, 120, 150, 180]  # the ends of epochs
PLACED = {
    "cluster.num_workers": 2,
    "cluster.min_workers": 1,
    "cluster.placement.strategy": "strict_spread",
    "cluster.placement.labels.group": "train",
    "cluster.evaluation.num_workers": 1,
    "cluster.evaluation.placement.labels.group": "evaluate",
}


def evaluated(run_dir: Path) -> dict[int, float]:
    """Return the metric of the validations by step."""
    try:
        lines = read_metrics(run_dir / "metrics.jsonl")
    except Exception:  # noqa: BLE001 - the file is read while it is written
        return {}
    return {line["step"]: line["ndcg@10"] for line in lines if line["kind"] == "validation"}


def nodes_of(log: Path) -> list[str]:
    """Return the nodes on which a rank has started, one after another."""
    lines = log.read_text().splitlines()
    return [line.rpartition(" on node ")[2].split()[0] for line in lines if "worker starts as process" in line]


def test_evaluation_and_training_survive_the_loss_of_their_nodes(
    config: Path, dataset: Path, slow: dict[str, str], tmp_path: Path
) -> None:
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    with ray_head(num_cpus=1, environment=slow, labels="group=train") as head:
        second = add_node(head, environment=slow, labels="group=train")
        wait_for("two nodes", lambda: num_cpus(head) == 2.0)  # two that start at once may choose the same ports
        third = add_node(head, labels="group=evaluate")
        command = None
        arguments = settings_of(run_dir, dataset, **{"cluster.address": head.address, **PLACED})
        try:
            wait_for("three nodes", lambda: num_cpus(head) == 3.0)
            command = shoal("train", str(config), *arguments, "--json", environment={"RAY_AUTH_MODE": "token"})
            wait_for("an evaluation during training", lambda: evaluated(run_dir), command)
            assert step_of(run_dir) < DUE[-1]
            end_family(third)
            lost_at = step_of(run_dir)
            wait_for("training without the node", lambda: step_of(run_dir) >= lost_at + 10, command)
            third = add_node(head, labels="group=evaluate")
            before = len(evaluated(run_dir))
            wait_for("an evaluation on the new node", lambda: len(evaluated(run_dir)) > before, command)
            end_family(second)
            wait_for("training on one node", recovered(run_dir, 1), command)
            code, _, err = finish(command, 900.0)
        finally:
            for process in (second, third, *([] if command is None else [command])):
                if process.poll() is None:
                    end_family(process)  # type: ignore[arg-type]
    assert code == 0, err
    evaluation, lost = report_restarts(run_dir)
    assert "the evaluation of step_" in evaluation.text
    assert (lost.cause, lost.steps is not None) == ("failure", True)
    assert [each.step for each in read_validations(run_dir)] == DUE  # each once; some may be skipped as too old
    assert DUE[-1] in evaluated(run_dir)
    training = {node for rank in (0, 1) for node in nodes_of(run_dir / f"logs/rank-{rank}.log")}
    evaluating = nodes_of(run_dir / "logs/evaluation/rank-0.log")
    assert len(training) == 2
    assert len(set(evaluating)) == 2
    assert not training & set(evaluating)
    check_against_undisturbed(config, dataset, run_dir, whole)
    expected = evaluated(whole)
    for step, value in evaluated(run_dir).items():
        assert value == pytest.approx(expected[step], rel=1e-3), step
