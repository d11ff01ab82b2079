"""Entries of [run], [cluster] and [plan]: folders, how Ray is asked for workers, what a plan takes the devices to be like."""

from pathlib import Path

from tests.settings.device_entries import of_devices_in
from tests.settings.entry import Entry, Settings
from tests.settings.logs import CALIBRATED
from tests.settings.observations.clusters import (
    asked_for_evaluation,
    asked_of_ray,
    calibrated_latency,
    dataset_dir,
    joined_address,
    measured,
    prepare_limit,
    prepare_nodes,
    refused_plan,
    run_dir,
    workers_refused,
)
from tests.settings.observations.recovery import allowed, blamed_after, second_wait, seconds_until_growth
from tests.settings.observations.tables import of_devices

WHERE = "where files and workers are is no part of what is computed"
EQUAL = "results do not depend on the number of workers (tests/contracts/test_world_size.py)"
PREDICTED = "for the plan, which changes no result"
FOUR: Settings = {"cluster.num_workers": 4}
ON_GPUS: Settings = {**FOUR, "cluster.gpus_per_worker": 1}

RUN = (
    Entry("run.dir", "elsewhere", run_dir, Path("elsewhere").resolve(), free=WHERE),
    Entry("run.dataset", "shared", dataset_dir, Path("shared").resolve(), free=WHERE),
)

JOINED: Settings = {"cluster.address": "auto", "cluster.prepare_tasks": None}
TOO_MANY: Settings = {"cluster.num_workers": 9, "cluster.address": "auto"}

CLUSTER = (
    Entry("cluster.address", "10.0.0.1:6379", joined_address, "10.0.0.1:6379", free=WHERE),
    Entry("cluster.num_workers", 3, asked_of_ray("workers"), 3, free=EQUAL),
    Entry("cluster.cpus_per_worker", 2, asked_of_ray("resources"), {"CPU": 2, "GPU": 0}, free=WHERE),
    Entry("cluster.cpus_per_worker", 2, asked_of_ray("threads"), 2, free=WHERE),
    Entry("cluster.gpus_per_worker", 1, asked_of_ray("resources"), {"CPU": 1, "GPU": 1}, free=WHERE),
    Entry("cluster.gpus_per_worker", 1, asked_of_ray("use_gpu"), True, free=WHERE),
    Entry("cluster.gpus_per_worker", 1, asked_of_ray("backend"), "nccl", free=WHERE),
    Entry("cluster.autoscaling", True, workers_refused, False, base=TOO_MANY, free=WHERE),
    Entry("cluster.prepare_tasks", 3, prepare_limit, 3, free=WHERE),
    Entry(
        "cluster.prepare_labels",
        {"group": "prepare"},
        prepare_nodes,
        (3, {"group": "prepare"}),
        base=JOINED,
        free=WHERE,
    ),
    Entry("cluster.placement.strategy", "spread", asked_of_ray("strategy"), "SPREAD", base=JOINED, free=WHERE),
    Entry(
        "cluster.placement.labels",
        {"group": "!spot"},
        asked_of_ray("labels"),
        {"group": "!spot"},
        base=JOINED,
        free=WHERE,
    ),
    Entry(
        "cluster.placement.resources",
        {"slot": 1.0},
        asked_of_ray("resources"),
        {"CPU": 1, "GPU": 0, "slot": 1.0},
        base=JOINED,
        free=WHERE,
    ),
    Entry(
        "cluster.collective_timeout_seconds",
        7.0,
        asked_of_ray("timeout"),
        7,
        free="bounds a wait that ends in an error, not in a result",
    ),
    # A wait of no second at all would fail at once.
    Entry("cluster.collective_timeout_seconds", 0.5, asked_of_ray("timeout"), 1, free="as above"),
)

ERRORS = (
    "decides whether and when failed workers are restarted, which changes no result (tests/end_to_end/test_recovery.py)"
)

ELSEWHERE = (
    "decides where checkpoints are evaluated, with equal results (tests/trainer/loop/test_concurrent_validation.py)"
)
EVALUATORS: Settings = {"cluster.evaluation.num_workers": 1}
APART: Settings = {**EVALUATORS, **JOINED}

EVALUATION = (
    Entry("cluster.evaluation.num_workers", 3, asked_for_evaluation("workers"), 3, free=ELSEWHERE),
    Entry(
        "cluster.evaluation.cpus_per_worker",
        2,
        asked_for_evaluation("resources"),
        {"CPU": 2, "GPU": 0},
        base=EVALUATORS,
        free=ELSEWHERE,
    ),
    Entry("cluster.evaluation.cpus_per_worker", 2, asked_for_evaluation("threads"), 2, base=EVALUATORS, free=ELSEWHERE),
    Entry(
        "cluster.evaluation.gpus_per_worker",
        1,
        asked_for_evaluation("resources"),
        {"CPU": 1, "GPU": 1},
        base=EVALUATORS,
        free=ELSEWHERE,
    ),
    Entry(
        "cluster.evaluation.gpus_per_worker",
        1,
        asked_for_evaluation("backend"),
        "nccl",
        base=EVALUATORS,
        free=ELSEWHERE,
    ),
    Entry(
        "cluster.evaluation.placement.strategy",
        "strict_pack",
        asked_for_evaluation("strategy"),
        "STRICT_PACK",
        base=APART,
        free=ELSEWHERE,
    ),
    Entry(
        "cluster.evaluation.placement.labels",
        {"group": "evaluation"},
        asked_for_evaluation("labels"),
        {"group": "evaluation"},
        base=APART,
        free=ELSEWHERE,
    ),
    Entry(
        "cluster.evaluation.placement.resources",
        {"memory": 1e9},
        asked_for_evaluation("resources"),
        {"CPU": 1, "GPU": 0, "memory": 1e9},
        base=APART,
        free=ELSEWHERE,
    ),
)

RECOVERY = (
    Entry("cluster.min_workers", 1, asked_of_ray("workers"), (1, 3), base={"cluster.num_workers": 3}, free=EQUAL),
    Entry("cluster.recovery.failures_per_hour", 4, allowed("failure"), 4, free=ERRORS),
    Entry("cluster.recovery.preemptions_per_hour", 4, allowed("preemption"), 4, free=ERRORS),
    Entry("cluster.recovery.same_step_failures", 2, allowed("failure", progress=False), 2, free=ERRORS),
    Entry("cluster.recovery.backoff_seconds", 3.0, second_wait, 3.0, free=ERRORS),
    Entry("cluster.recovery.resize_seconds", 9.0, seconds_until_growth, 9, free=ERRORS),
    Entry("cluster.recovery.heartbeat_seconds", 9.0, blamed_after("step", 7, silent=True), 10, free=ERRORS),
    Entry("cluster.recovery.start_seconds", 70.0, blamed_after("start", 0), 71, free=ERRORS),
    Entry("cluster.recovery.first_step_seconds", 70.0, blamed_after("step", 1), 71, free=ERRORS),
    Entry("cluster.recovery.step_seconds", 70.0, blamed_after("step", 7), 71, free=ERRORS),
    Entry("cluster.recovery.evaluation_seconds", 70.0, blamed_after("evaluation", 7), 71, free=ERRORS),
    Entry("cluster.recovery.checkpoint_seconds", 70.0, blamed_after("checkpoint", 7), 71, free=ERRORS),
)

PLAN = (
    Entry("plan.devices_per_host", 2, of_devices("devices_per_host"), 2, base=FOUR, free=PREDICTED),
    *of_devices_in("plan", of_devices, figures_base=ON_GPUS, free=PREDICTED),
    Entry("plan.calibration", "LOGS/calibration.json", calibrated_latency, CALIBRATED, free=PREDICTED),
    Entry("plan.measure", True, measured, True, free="look-ups are timed before the first step, and change no weight"),
    Entry(
        "plan.replica_groups",
        2,
        refused_plan,
        "plan.replica_groups = 2",
        base=FOUR,
        free="groups can be planned (see workload.topology.replica_groups), and training refuses them",
    ),
)

ENTRIES = (*RUN, *CLUSTER, *EVALUATION, *RECOVERY, *PLAN)
