"""`shoal explain`: why a model recommends an item to a user, as Parquet files and a page."""

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from cluster.cli.options import AsJson, Overrides, console_for, in_view, load, print_json
from cluster.doctor.packages import TRAINING, check_installed
from trainer.storage.objects.paths import local_path, path_of

# Written out, so that --help imports no module that knows them. A test compares the two.
Removal = Literal["deleted", "masked", "replaced"]


def explain(
    run: Annotated[str, typer.Argument(metavar="RUN", help="run folder, or config of a run", show_default=False)],
    users: Annotated[
        str | None,
        typer.Option(metavar="FILE|ID,...", help="users: a Parquet, CSV or text file, or ids separated by commas"),
    ] = None,
    sample: Annotated[
        int | None, typer.Option(metavar="N", help="number of users drawn from the dataset (default: 100)")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of all draws")] = 0,
    user: Annotated[str | None, typer.Option(help="user of a single pair, with --item")] = None,
    item: Annotated[str | None, typer.Option(help="item of a single pair, with --user")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", "--methods", metavar="NAME|all", help="method (default: the recommended one); all compares"
        ),
    ] = None,
    k: Annotated[int, typer.Option(help="number of recommended items that are explained to each user")] = 1,
    filter_viewed: Annotated[
        bool | None,
        typer.Option(
            "--filter-viewed/--no-filter-viewed",
            help="leave out items of the user's history (default: yes)",
            show_default=False,
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="time of the requests: ISO date, or an integer as in the logs (default: latest)"
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="NAME", help="label of a ranker that is explained")] = None,
    removal: Annotated[Removal, typer.Option(help="what removing an event means")] = "deleted",
    shown: Annotated[int, typer.Option(metavar="N", help="number of users on the page")] = 12,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="measure how faithful the methods are for this model")
    ] = True,
    checkpoint: Annotated[str | None, typer.Option(help="name or path of a checkpoint (default: the best one)")] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="folder to write (default: explanations/ in the run folder)")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Explain recommendations: the value of each event of a history, what would change the answer, and where attention goes."""
    settings = load(str(path_of(run) / "config.json") if path_of(run).is_dir() else run, overrides)
    check_installed("explain", TRAINING)
    from cluster.driver import driver
    from trainer.explanation.command.folder import PAGE
    from trainer.explanation.command.request import Options

    options = Options(users, sample, seed, user, item, method, k, filter_viewed, at, label, removal, shown, measure)
    target = None if out is None else local_path(out, "--out")
    done, folder = in_view(as_json, lambda view: driver.run_explain(settings, options, checkpoint, target, view))
    if as_json:
        print_json({**asdict(done), "folder": str(folder), "page": str(folder / PAGE)})
    else:
        console_for(False).print(f"explanations: {folder / PAGE}", highlight=False, soft_wrap=True)
