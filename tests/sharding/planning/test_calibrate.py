"""Constants are found again from what they would cause, and left alone where nothing was measured."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from sharding.config import CommunicationConfig
from sharding.plan import Plan, TablePlan
from sharding.planning.calibrate import alone, calibrate, observations_of
from sharding.planning.costs import predict
from sharding.planning.load import TableLoad
from sharding.planning.topology import CONSTANTS, Topology

TOPOLOGY = Topology("cpu", 2, 2, 8 * 1024**3)
FP32 = CommunicationConfig()
LOADS = [TableLoad("wide", 1000, 128, False, 0.0, 0.0), TableLoad("thin", 1000, 4, False, 0.0, 0.0, optimizer="sgd")]
PLAN = Plan(
    2, 2, "cpu", {"wide": TablePlan("row_wise", "fused", 1000, 128), "thin": TablePlan("row_wise", "fused", 1000, 4)}
)
NUM_IDS = [10, 200, 1000, 5000]


def measured(constants, noise=0.0, plan=PLAN, topology=TOPOLOGY):
    """Return observations of a machine that has these constants."""
    random = np.random.default_rng(1)
    result = []
    for load in LOADS:
        seconds = {phase: [] for phase in ("input", "lookup", "output", "gradient", "update")}
        for number in NUM_IDS:
            costs = predict(*alone(plan, load, number), replace(topology, constants=constants), FP32)
            for phase, values in costs.phases.items():
                seconds[phase].append(values[0] * (1.0 + noise * random.standard_normal(values.shape[1])))
        stacked = {phase: np.stack(values) for phase, values in seconds.items()}
        result += observations_of(plan, LOADS, topology, FP32, load.name, NUM_IDS, stacked)
    return result


def test_calibration_recovers_the_constants():
    truth = replace(
        CONSTANTS["cpu"], latency=0.3, network=2.0, seconds_per_update_id=9e-7, update_gradients=70.0, copy=3.0
    )
    result = calibrate(measured(truth), CONSTANTS["cpu"])
    assert result.num_observations == 2 * len(NUM_IDS) * 5 * 2
    for phase, error in result.error_after.items():
        assert error < 0.01 or error < result.error_before[phase] / 10, phase
    assert max(result.error_before.values()) > 0.3
    # Bytes on the network and ids that are sorted for it go together in one run, so only their sum is sure.
    for name in ("latency", "update_gradients"):
        assert getattr(result.constants, name) == pytest.approx(getattr(truth, name), rel=0.1), name


def test_noise_is_averaged_out():
    truth = replace(CONSTANTS["cpu"], network=3.0, latency=2.0)
    result = calibrate(measured(truth, noise=0.1), CONSTANTS["cpu"])
    assert result.constants.latency == pytest.approx(2.0, rel=0.15)
    assert max(result.error_after.values()) < 0.15


def test_constants_of_which_nothing_was_measured_stay():
    alone = Plan(1, 1, "cpu", PLAN.tables)
    topology = replace(TOPOLOGY, num_devices=1, devices_per_host=1)
    truth = replace(CONSTANTS["cpu"], lookup_read=3.0)
    result = calibrate(measured(truth, plan=alone, topology=topology), CONSTANTS["cpu"])
    before, after = asdict(CONSTANTS["cpu"]), asdict(result.constants)
    for name in ("latency", "network", "host_access"):
        assert after[name] == pytest.approx(before[name], rel=1e-6), name
    assert all(value >= 0.0 for value in after.values())


def test_calibration_without_measurements_is_refused():
    with pytest.raises(ValueError, match="nothing was measured"):
        calibrate([], CONSTANTS["cpu"])
