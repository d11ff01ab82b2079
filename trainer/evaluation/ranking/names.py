"""What the metrics and the baselines of impressions are called. Imports nothing."""

METRICS = ("auc", "gauc", "logloss", "ne", "calibration")
LARGER_IS_BETTER = {"auc": True, "gauc": True, "logloss": False, "ne": False}  # of calibration neither is

BASELINES = ("popularity", "user_rate", "item_and_user")
PRIOR_IMPRESSIONS = 20.0  # at the overall rate, which the rates of items and users are smoothed with


def larger_is_better(metric: str) -> bool:
    """Return whether more of a metric is better; of either task, such as "ndcg@10" or "logloss/click"."""
    return LARGER_IS_BETTER.get(metric.partition("/")[0], True)


def name_of(metric: str, label: str, labels: tuple[str, ...]) -> str:
    """What a metric is called: by itself where a model has one label, else with the label, as in "auc/click"."""
    return metric if len(labels) == 1 else f"{metric}/{label}"


def name_among(metric: str, labels: tuple[str, ...]) -> str:
    """Return what a model of these labels calls a metric: "auc" for "auc/click" where click is its only label."""
    name, _, label = metric.partition("/")
    return name if labels == (label,) else metric
