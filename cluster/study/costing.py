"""What the points of a study cost by the cost model (models/costs.py), on the dataset that they train on. No torch, no ray."""

from dataclasses import dataclass

from cluster.study.trials import Plan


@dataclass(frozen=True)
class Costing:
    """Per input event, on average over the training histories; parts: training FLOPs by part, which add up to the whole."""

    forward_flops_per_event: float
    training_flops_per_event: float
    activation_bytes_per_event: float
    moved_bytes_per_event: float
    dense_parameters: int
    table_parameters: int
    parts: dict[str, float]


def costs_of_points(plan: Plan) -> list[Costing | None]:
    """By point; none where the cost is not known."""
    return [None for _ in plan.points]
