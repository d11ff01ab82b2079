"""`shoal synth`: generated event logs with known structure."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.options import AsJson, console_for, print_json
from cluster.doctor.packages import RAY, check_installed
from trainer.errors import UserError
from trainer.storage.objects.paths import local_path

if TYPE_CHECKING:
    from cluster.config.run_config import ClusterConfig
    from trainer.data.synthetic.impression_world import ImpressionConfig
    from trainer.data.synthetic.impressions import ImpressionSummary
    from trainer.data.synthetic.log import SyntheticSummary
    from trainer.data.synthetic.world import SyntheticConfig


def synth(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="new folder for the logs; their truth goes to truth/ in it")
    ],
    users: Annotated[int, typer.Option(help="number of users")] = 4000,
    items: Annotated[int, typer.Option(help="number of items")] = 1000,
    events_per_user: Annotated[float, typer.Option(help="mean number of events, or impressions, per user")] = 40.0,
    seed: Annotated[int, typer.Option(help="seed; the same seed gives the same bytes")] = 1,
    impressions: Annotated[
        bool, typer.Option("--impressions", help="impressions with known click probabilities, for task = ranking")
    ] = False,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="generate the files in parallel on a local Ray cluster (for large logs)")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="override a setting of the log, such as num_categories=12"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate event logs with known structure, together with the truth."""
    from cluster.config.run_config import ClusterConfig

    cluster = ClusterConfig() if on_ray else None
    summary = make(folder, users, items, events_per_user, seed, overrides or [], cluster, impressions)
    what = "impressions" if impressions else "events"
    if as_json:
        print_json(summary)
    else:
        console_for(False).print(
            f"wrote {summary[f'num_{what}']:,} {what} of {summary['num_users']:,} users to {folder}", highlight=False
        )


def make(
    folder: str,
    users: int,
    items: int,
    events_per_user: float,
    seed: int,
    overrides: list[str],
    cluster: "ClusterConfig | None",
    impressions: bool = False,
) -> dict[str, Any]:
    """Generate a log and return its summary.

    Args:
        folder: A new folder for the log.
        users: Number of users.
        items: Number of items.
        events_per_user: Mean number of events per user, or of impressions.
        seed: Seed of everything random.
        overrides: Further settings of the log, as key=value.
        cluster: The local Ray cluster to generate on; None generates in this process, without Ray.
        impressions: Generate impressions instead of events.

    Raises:
        UserError: Settings do not fit together, or the folder cannot be written.
    """
    from pydantic import ValidationError

    from cluster.config.explain import explain
    from cluster.config.file import apply_override, refuse_unusable
    from trainer.data.synthetic.impression_world import ImpressionConfig
    from trainer.data.synthetic.impressions import generate_impressions
    from trainer.data.synthetic.log import generate
    from trainer.data.synthetic.world import SyntheticConfig

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
        return asdict(_on_ray(config, local_path(folder, "FOLDER"), cluster))
    if isinstance(config, ImpressionConfig):
        return asdict(generate_impressions(config, local_path(folder, "FOLDER").absolute()))
    return asdict(generate(config, local_path(folder, "FOLDER").absolute()))


def _on_ray(
    config: "SyntheticConfig | ImpressionConfig", folder: Path, cluster: "ClusterConfig"
) -> "SyntheticSummary | ImpressionSummary":
    """Generate the files in parallel on a Ray cluster."""
    check_installed("synth --ray", RAY)
    from cluster.data.synth import synthesize  # Ray: seconds, and not needed without --ray
    from cluster.ray_cluster.session import ray_session

    with ray_session(cluster):
        return synthesize(config, folder)
