"""Names of baselines, and of the values of each label. Imports nothing."""

BASELINES = ("popularity", "user_rate", "item_and_user")
PRIOR_IMPRESSIONS = 20.0  # at the overall rate, by which the rates of items and users are smoothed


def name_of(metric: str, label: str, labels: tuple[str, ...]) -> str:
    """Return the name of a metric or column of a label: alone where a model has one label, else as in "auc/click"."""
    return metric if len(labels) == 1 else f"{metric}/{label}"


def name_among(metric: str, labels: tuple[str, ...]) -> str:
    """Return the name of a metric in a model of these labels: "auc" for "auc/click" where click is its only label."""
    name, _, label = metric.partition("/")
    return name if labels == (label,) else metric
