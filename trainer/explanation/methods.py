"""All methods of attribution by name, with one signature: what the command and the measurements of faithfulness call."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from trainer.explanation import attention, gradients, integrated, occlusion, rollout
from trainer.explanation.attribution import Attribution
from trainer.explanation.baselines import Baselines, mean_baseline, sampled_baselines, zero_baseline
from trainer.explanation.explained import Explained
from trainer.explanation.questions import Questions
from trainer.explanation.removal import Removal

Method = Literal[
    "attention",
    "rollout",
    "gradient_x_input",
    "integrated_gradients_zero",
    "integrated_gradients_mean",
    "integrated_gradients_sampled",
    "occlusion",
]
METHODS: tuple[Method, ...] = get_args(Method)
WITH_POOL: tuple[Method, ...] = ("integrated_gradients_mean", "integrated_gradients_sampled")


@dataclass(frozen=True)
class MethodOptions:
    """Options of the methods. Each method uses those that apply to it."""

    pool: Questions | None = None
    """Questions with other histories, the same on every worker: for mean and sampled baselines, and for replaced events."""
    n_steps: int = 50
    """Steps of an integral, shared by the sampled baselines of a question."""
    num_samples: int = 5
    """Number of sampled baselines of each question."""
    tolerance: float | None = 0.01
    """Largest convergence delta of integrated gradients, relative to the difference of scores; None: any."""
    removal: Removal = "deleted"
    """What occlusion does to an event."""
    seed: int = 0
    """Seed of all draws."""
    internal_batch_size: int | None = None
    """Number of events that are encoded at a time."""


def explain(model: Explained, asked: Questions, method: Method, options: MethodOptions | None = None) -> Attribution:
    """Return the values of one method. Collective.

    Args:
        model: the model.
        asked: the questions.
        method: the method.
        options: its options; None: the defaults.
    """
    given = options or MethodOptions()
    size = given.internal_batch_size
    match method:
        case "attention":
            return attention.attribute(model, asked, size)
        case "rollout":
            return rollout.attribute(model, asked, size)
        case "gradient_x_input":
            return gradients.attribute(model, asked, size)
        case "occlusion":
            return occlusion.attribute(model, asked, given.removal, given.pool, given.seed, size)
        case _:
            baselines = baselines_of(model, method, given)
            steps = max(1, given.n_steps // baselines.num_samples)
            return integrated.attribute(model, asked, baselines, steps, size, tolerance=given.tolerance)


def explain_all(
    model: Explained, asked: Questions, methods: Iterable[Method], options: MethodOptions | None = None
) -> dict[str, Attribution]:
    """Return the values of several methods by name. Collective. Arguments as for `explain`."""
    return {method: explain(model, asked, method, options) for method in methods}


def baselines_of(model: Explained, method: Method, options: MethodOptions) -> Baselines:
    """Return the baselines of a method of integrated gradients. Collective.

    Args:
        model: the model.
        method: the method.
        options: with a pool for mean and sampled baselines.
    """
    if method == "integrated_gradients_zero":
        return zero_baseline(model)
    assert options.pool is not None, f"{method} needs a pool of histories"
    if method == "integrated_gradients_mean":
        return mean_baseline(model, options.pool)
    return sampled_baselines(model, options.pool, options.num_samples, options.seed)
