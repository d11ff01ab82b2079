"""`shoal recommend`: recommendations of a checkpoint for many users, as Parquet files."""

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from cluster.cli.options import AsJson, ConfigFile, Overrides, console_for, in_view, load_with_logs, print_json
from cluster.doctor.packages import TRAINING, check_installed
from trainer.storage.objects.paths import local_path

# Written out, so that --help imports no module that knows them. A test compares the two.
OnUnknown = Literal["raise", "warn", "skip"]
History = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH",
        help="file, folder or glob of logs with the events of the histories (default: those of the dataset); may be repeated",
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="NAME[=WEIGHT]", help="label that orders the candidates of a ranker by its probability"
    ),
]
At = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="time of the requests: ISO date, or an integer as in the logs (default: latest)"),
]


def recommend(
    config: ConfigFile,
    users: Annotated[
        str, typer.Option(metavar="FILE|all", help="Parquet, CSV or text file of users, or all users of the dataset")
    ] = "all",
    k: Annotated[int, typer.Option(help="number of items per user")] = 10,
    filter_viewed: Annotated[
        bool | None,
        typer.Option(
            "--filter-viewed/--no-filter-viewed",
            help="leave out items of the user's history (default: yes, for rankers no)",
            show_default=False,
        ),
    ] = None,
    history: History = None,
    items: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="file of the only items to recommend (default: all); rankers need it"),
    ] = None,
    item_to_item: Annotated[
        bool, typer.Option("--item-to-item", help="write similar items of all items, or of those of --items")
    ] = False,
    label: Labels = None,
    at: At = None,
    on_unknown: Annotated[
        OnUnknown, typer.Option(help="reaction to users or items of files that the dataset does not have")
    ] = "raise",
    checkpoint: Annotated[str | None, typer.Option(help="name or path of a checkpoint (default: the best one)")] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="folder to write (default: recommendations/ in the run folder)")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Write the best items for each user to Parquet files.

    With --history, --set logs.NAME=VALUE describes these logs, for example their columns; the run keeps its own settings.
    """
    settings, overrides_of_logs = load_with_logs(config, overrides, history)
    check_installed("recommend", TRAINING)
    from cluster.driver import driver
    from cluster.driver.other_data import given_histories
    from trainer.recommend.request import Options

    options = Options(k, users, items, item_to_item, filter_viewed, on_unknown, at, weights_of(label or []))
    target = None if out is None else local_path(out, "--out")
    given = given_histories(settings, history, overrides_of_logs)
    done, folder = in_view(
        as_json, lambda view: driver.run_recommend(settings, options, checkpoint, target, view, given)
    )
    if as_json:
        print_json({**asdict(done), "folder": str(folder)})
    else:
        console_for(False).print(f"recommendations: {folder}", highlight=False, soft_wrap=True)


def weights_of(labels: list[str]) -> dict[str, float]:
    """Return the weight of each label of NAME or NAME=WEIGHT. Raises UserError for a weight that is no number."""
    from trainer.errors import UserError

    weights = {}
    for given in labels:
        name, _, weight = given.partition("=")
        try:
            weights[name] = float(weight or 1.0)
        except ValueError:
            raise UserError(f"--label {given}: the weight is no number; write NAME=WEIGHT, such as like=0.5") from None
    return weights
