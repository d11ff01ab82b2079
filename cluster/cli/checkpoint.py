"""`shoal checkpoint ...`: list, inspect, verify and reshard checkpoints. Each command imports what it needs when it runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.errors import UserError

checkpoints = typer.Typer(no_args_is_help=True, help="List, inspect, verify and reshard the checkpoints of a run.")
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout, everything else on stderr")]


def print_json(value: dict[str, Any]) -> None:
    """The answer of a command to a program."""
    print(json.dumps(value, default=str))


@checkpoints.command("list")
def list_checkpoints(
    run_dir: Annotated[str, typer.Argument(metavar="RUN_DIR", help="folder of a run")], as_json: AsJson = False
) -> None:
    """Committed checkpoints, newest first."""
    from trainer.checkpoint import folder as checkpoint_folder

    folder = _checkpoints_of(run_dir)
    rows = []
    for path in checkpoint_folder.committed(folder):
        manifest = checkpoint_folder.read(path)
        size = sum(entry["num_bytes"] for entry in manifest.files.values())
        rows.append({"name": path.name, "step": manifest.step, "position": manifest.position, "num_bytes": size})
    if as_json:
        print_json({"checkpoints": rows, "best": checkpoint_folder.read_best(folder)})
        return
    for row in rows:
        print(f"{row['name']}  position {row['position']:,}  {row['num_bytes']:,} bytes")


@checkpoints.command("inspect")
def inspect_checkpoint(
    path: Annotated[str, typer.Argument(help="folder of a checkpoint")], as_json: AsJson = False
) -> None:
    """The manifest of one checkpoint."""
    from trainer.checkpoint import folder as checkpoint_folder

    print(json.dumps(asdict(checkpoint_folder.read(Path(path))), indent=None if as_json else 1))


@checkpoints.command("verify")
def verify_checkpoints(
    run_dir: Annotated[str, typer.Argument(metavar="RUN_DIR", help="folder of a run")], as_json: AsJson = False
) -> None:
    """Compare every file of every checkpoint with its hash; exit 2 if any differs."""
    from trainer.checkpoint import folder as checkpoint_folder

    outcome: dict[str, str] = {}
    for path in checkpoint_folder.committed(_checkpoints_of(run_dir)):
        try:
            checkpoint_folder.verify(path)
            outcome[path.name] = "ok"
        except UserError as error:
            outcome[path.name] = str(error)
    if as_json:
        print_json({"checkpoints": outcome})
    else:
        for name, verdict in outcome.items():
            print(f"{name}  {verdict}")
    raise typer.Exit(0 if all(verdict == "ok" for verdict in outcome.values()) else 2)


@checkpoints.command("reshard")
def reshard_checkpoint(
    path: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="folder of a checkpoint")],
    out: Annotated[
        str, typer.Argument(metavar="OUT_FOLDER", help="where the new one is committed, such as RUN_DIR/checkpoints")
    ],
    config: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="config of the run to come; without it, the checkpoint's own")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="number of workers, as cluster.num_workers")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="override a setting, such as tables.item.sharding=row_wise"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint anew as the plan of other workers or settings lays it out; no Ray, no table whole in memory."""
    from cluster.cli.reshard import run

    settings = [*(overrides or []), *([f"cluster.num_workers={workers}"] if workers else [])]
    done = run(Path(path), Path(out), config, settings)
    if as_json:
        print_json(asdict(done))
    else:
        print(f"{done.checkpoint}  for {done.world_size} workers, {done.num_bytes:,} bytes; tables: {done.placed}")


def _checkpoints_of(run_dir: str) -> Path:
    folder = Path(run_dir) / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{run_dir}: has no checkpoints/ folder, so nothing was trained there")
    return folder
