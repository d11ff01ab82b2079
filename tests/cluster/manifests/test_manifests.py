"""The manifests in examples/cluster: their fields, the rules between fields, and what they have in common with the project."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cluster.doctor.checks import TESTED_RAY
from tests.cluster.manifests.schema import KINDS

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "examples" / "cluster"
KUBERNETES = "1.34"
MANIFESTS = sorted(path for path in FOLDER.glob("*.yaml") if "apiVersion: ray.io" in path.read_text(encoding="utf-8"))


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def check(values: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(KINDS[values["kind"]]).validate(values)


def cluster_of(values: dict[str, Any]) -> dict[str, Any]:
    spec = values["spec"].get("jobTemplate", values["spec"])
    result: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return result


def pods(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def test_there_is_a_manifest_of_each_kind() -> None:
    assert {read(path)["kind"] for path in MANIFESTS} == set(KINDS)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_has_known_fields_that_fit_each_other(path: Path) -> None:
    check(read(path))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_cluster_is_consistent(path: Path) -> None:
    cluster = cluster_of(read(path))
    assert cluster["rayVersion"].startswith(f"{TESTED_RAY}.")
    assert cluster["headGroupSpec"]["resources"] == {"CPU": "0"}  # no worker shares the pod of the driver
    for pod in pods(cluster):
        mounts = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounts <= {volume["name"] for volume in pod["volumes"]}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group.get("replicas", group["minReplicas"]) <= group["maxReplicas"]
        requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
        assert group["resources"]["CPU"] == requests["cpu"]  # Ray offers what the pod has
        assert group["resources"].get("GPU") == requests.get("nvidia.com/gpu")
        elastic = group["minReplicas"] < group["maxReplicas"]
        assert not elastic or cluster["enableInTreeAutoscaling"]


def check_pod(spec: dict[str, Any]) -> None:
    """Compare the pod of a group with the schema of Kubernetes, which knows every field of it."""
    metadata = {"name": "shoal"}
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, KUBERNETES, strict=True
    )


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_pods_fit_the_schema_of_kubernetes(path: Path) -> None:
    checked = [check_pod(pod) for pod in pods(cluster_of(read(path)))]
    assert len(checked) > 1


@pytest.mark.parametrize(
    "mistake",
    [
        lambda pod: pod["containers"][0].update(volumeMount=[]),  # an unknown field
        lambda pod: pod["containers"][0].pop("name"),
        lambda pod: pod["volumes"][0].update(persistentVolumeClaim={"claim": "shoal-data"}),
    ],
    ids=["unknown field", "no name", "wrong field of a volume"],
)
def test_a_mistake_in_a_pod_is_found(mistake: Callable[[dict[str, Any]], None]) -> None:
    pod = copy.deepcopy(next(pods(cluster_of(read(FOLDER / "rayjob_cpu.yaml")))))
    mistake(pod)
    with pytest.raises(kubernetes_validate.ValidationError):
        check_pod(pod)


def changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    values = copy.deepcopy(read(FOLDER / "rayjob_cpu.yaml"))
    change(values["spec"])
    return values


MISTAKES: dict[str, Callable[[dict[str, Any]], None]] = {
    "rules and shutdown": lambda spec: spec.update(shutdownAfterJobFinishes=True),
    "rules and a common time": lambda spec: spec.update(ttlSecondsAfterFinished=60),
    "time without shutdown": lambda spec: (spec.pop("deletionStrategy"), spec.update(ttlSecondsAfterFinished=60)),
    "no rules": lambda spec: spec["deletionStrategy"].update(deletionRules=[]),
    "two conditions": lambda spec: spec["deletionStrategy"]["deletionRules"][0]["condition"].update(
        jobDeploymentStatus="Failed"
    ),
    "no condition": lambda spec: spec["deletionStrategy"]["deletionRules"][0]["condition"].pop("jobStatus"),
    "a sidecar that restarts": lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].pop(
        "restartPolicy"
    ),
    "a sidecar with a template": lambda spec: spec.update(
        submitterPodTemplate=spec["rayClusterSpec"]["headGroupSpec"]["template"]
    ),
    "no deadline": lambda spec: spec.update(preRunningDeadlineSeconds=0),
    "an unknown field": lambda spec: spec["rayClusterSpec"].update(gcsFaultTolerance={}),
    "storage of redis": lambda spec: spec["rayClusterSpec"].update(
        gcsFaultToleranceOptions={"backend": "redis", "redisAddress": "redis:6379", "storage": {"size": "1Gi"}}
    ),
    "two kinds of storage": lambda spec: spec["rayClusterSpec"].update(
        gcsFaultToleranceOptions={"backend": "rocksdb", "storage": {"size": "1Gi", "claimName": "mine"}}
    ),
    "a number as a resource": lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0]["resources"].update(CPU=4),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check(changed(MISTAKES[name]))


def test_the_autoscaler_has_the_nodes_that_it_names() -> None:
    values = read(FOLDER / "ray_autoscaler.yaml")
    types = values["available_node_types"]
    assert types[values["head_node_type"]]["resources"] == {"CPU": 0}
    assert all(node["max_workers"] <= values["max_workers"] for name, node in types.items() if name != "head")
    assert any("--autoscaling-config" in command for command in values["head_start_ray_commands"])


def test_the_image_is_installed_as_the_documentation_says() -> None:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (torch,) = set(re.findall(r"install .*(torch==[\d.]+)", makefile))
    assert set(re.findall(r"torch==[\d.]+", text)) == {torch}
    assert "--no-deps -r requirements/${ACCEL}.txt" in text
    for copied in re.findall(r"^COPY (.+) \S+$", text, re.M):
        assert all((ROOT / name).exists() for name in copied.split())
