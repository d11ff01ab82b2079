"""`shoal synth`: from the command line's settings to a generated log."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.config.file import apply_override, refuse_unusable
from cluster.config.run_config import ClusterConfig, explain
from cluster.doctor.packages import RAY, check_installed
from trainer.data.synthetic.impression_world import ImpressionConfig
from trainer.data.synthetic.impressions import ImpressionSummary, generate_impressions
from trainer.data.synthetic.log import SyntheticSummary, generate
from trainer.data.synthetic.world import SyntheticConfig
from trainer.errors import UserError


def make(
    folder: str,
    users: int,
    items: int,
    events_per_user: float,
    seed: int,
    overrides: list[str],
    cluster: ClusterConfig | None,
    impressions: bool = False,
) -> dict[str, Any]:
    """Generate a log and return its summary.

    Args:
        cluster: the local Ray to share the files out to; None generates them in this process, which needs no Ray.
        impressions: whether rows are impressions, of which each user has events_per_user, and not events.

    Raises:
        UserError: settings do not fit together, or the folder cannot be written.
    """
    settings = ImpressionConfig if impressions else SyntheticConfig
    values: dict[str, Any] = {
        "num_users": users,
        "num_items": items,
        "mean_impressions_per_user" if impressions else "mean_events_per_user": events_per_user,
        "seed": seed,
    }
    for override in overrides:
        apply_override(override, values, example="num_categories=12")
    refuse_unusable(values, "synth")
    try:
        config = settings.model_validate(values)
    except ValidationError as error:
        known = ", ".join(settings.model_fields)
        raise UserError(f"{explain(error, 'of the log', settings)}\nsettings of the log: {known}") from None
    if cluster is not None:
        return asdict(_on_ray(config, Path(folder), cluster))
    if isinstance(config, ImpressionConfig):
        return asdict(generate_impressions(config, Path(folder).absolute()))
    return asdict(generate(config, Path(folder).absolute()))


def _on_ray(
    config: SyntheticConfig | ImpressionConfig, folder: Path, cluster: ClusterConfig
) -> SyntheticSummary | ImpressionSummary:
    check_installed("synth --ray", RAY)
    from cluster.data.synth import synthesize  # Ray: seconds, and not needed without --ray
    from cluster.ray_cluster.session import ray_session

    with ray_session(cluster):
        return synthesize(config, folder)
