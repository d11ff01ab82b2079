"""`shoal checkpoint`: lists, inspects, verifies and reshards checkpoints."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.options import AsJson, RunFolder, print_json
from trainer.errors import UserError
from trainer.storage.objects.paths import path_of

checkpoints = typer.Typer(no_args_is_help=True, help="List, inspect, verify and reshard the checkpoints of a run.")


@checkpoints.command("list")
def list_checkpoints(run_dir: RunFolder, as_json: AsJson = False) -> None:
    """List the committed checkpoints, newest first."""
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
    """Print the manifest of a checkpoint."""
    from trainer.checkpoint import folder as checkpoint_folder

    print(json.dumps(asdict(checkpoint_folder.read(path_of(path))), indent=None if as_json else 1))


@checkpoints.command("verify")
def verify_checkpoints(run_dir: RunFolder, as_json: AsJson = False) -> None:
    """Compare each file of each checkpoint with its hash. The exit code is 2 if any differs."""
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
        str, typer.Argument(metavar="OUT_FOLDER", help="folder for the new checkpoint, such as RUN_DIR/checkpoints")
    ],
    config: Annotated[
        str | None,
        typer.Option(metavar="CONFIG", help="config of the target run (default: the config of the checkpoint)"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="number of workers of the target run, as cluster.num_workers")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="override a setting, such as tables.item.sharding=row_wise"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rewrite a checkpoint for another worker count or sharding plan, without Ray and without holding a whole table in memory."""
    from cluster.cli.reshard import run

    settings = [*(overrides or []), *([f"cluster.num_workers={workers}"] if workers else [])]
    done = run(path_of(path), path_of(out), config, settings)
    if as_json:
        print_json(asdict(done))
    else:
        print(f"{done.checkpoint}  for {done.world_size} workers, {done.num_bytes:,} bytes; tables: {done.placed}")


def _checkpoints_of(run_dir: str) -> Path:
    folder = path_of(run_dir) / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{run_dir}: has no checkpoints/ folder, so nothing was trained there")
    return folder
