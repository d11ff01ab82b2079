"""`shoal synth`: from the command line's settings to a generated log."""

from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from cluster.config.explain import explain
from cluster.config.file import apply_override, refuse_unusable
from cluster.config.run_config import ClusterConfig
from cluster.data.synth import synthesize
from cluster.ray_cluster.session import ray_session
from trainer.data.synthetic.impression_world import ImpressionConfig
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
    """Generate; on a local Ray if `cluster` is given. Raises UserError for settings that do not fit together.

    impressions: whether rows are impressions, of which each user has events_per_user, and not events.
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
    with ray_session(cluster) if cluster is not None else nullcontext():
        return asdict(synthesize(config, folder))
