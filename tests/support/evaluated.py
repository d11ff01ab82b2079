"""Results of evaluations as values, for tests of what is made of them."""

from trainer.evaluation.next_item.results import Results


def results_of(model: dict[str, float], popularity: dict[str, float], split: str = "test") -> Results:
    """Return the results of a model and its baseline with these metrics; all intervals are 0.01 wide on both sides."""
    return Results(
        task="next_item",
        split=split,
        checkpoint="step_000000008",
        protocol={"catalogue": 40},
        num_users=60,
        num_targets=60,
        num_targets_not_rankable=0,
        metrics=model,
        ci95={name: [value - 0.01, value + 0.01] for name, value in model.items()},
        baselines={"popularity": popularity},
        baselines_ci95={"popularity": {name: [value - 0.01, value + 0.01] for name, value in popularity.items()}},
        slices=[],
    )
