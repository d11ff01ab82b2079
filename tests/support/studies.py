"""Plans of studies with hand-made results of trials: nothing is run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cluster.study.collect import Finished, Measured
from cluster.study.config import read_study
from cluster.study.costing import Costing
from cluster.study.record import Record
from cluster.study.trials import Plan, Trial, plan_trials


def plan_of(folder: Path, points: str) -> Plan:
    """Return the plan of a study with `points`, such as a grid, and two seeds of each."""
    file = folder / "study.toml"
    file.write_text(f'[study]\ndir = "{folder / "study"}"\nseeds = [1, 2]\n{points}\n[logs]\npath = "events.parquet"\n')
    (folder / "study").mkdir(exist_ok=True)
    return plan_trials(read_study(file))


def finished(
    plan: Plan,
    values: Mapping[tuple[int, int], Sequence[float]],
    without: str = "",
    users: Sequence[str] | None = None,
    speed_of: Callable[[Trial], float] = lambda trial: 8.0,
) -> dict[str, Finished]:
    """Return all trials but the one named, as if they had been run. values: by point and seed, NDCG@10 of each user."""
    result = {}
    for trial in plan.trials:
        if trial.name != without:
            of_users = np.asarray(values[trial.point, trial.seed])
            names = list(users or map(str, range(len(of_users))))
            measured = Measured({"ndcg@10": float(of_users.mean()), "mrr": 0.5}, names, of_users)
            record = Record("done", "d", 1, 8.0, speed_of(trial), 1000 * (trial.point + trial.seed), 40)
            result[trial.name] = Finished(trial, record, {"validation": measured, "test": measured})
    return result


def costing(flops: float) -> Costing:
    """Return the costs of a model that takes a number of FLOPs in training."""
    return Costing(flops / 3, flops, flops, 10.0, 30.0, 77, 1000, {"attention": flops}, 20.0, False)
