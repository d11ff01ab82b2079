"""`shoal export`: a trained model as a folder that scores raw histories without Ray, TorchRec and the dataset."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.cli.options import AsJson, console_for, print_json
from cluster.doctor.packages import TRAINING, check_installed
from trainer.storage.objects.paths import local_path, path_of

if TYPE_CHECKING:
    from rich.console import Console

    from trainer.export.folder import Manifest


def export(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="run folder, checkpoint folder, or config of a run", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", help="folder to write; an earlier export in it is replaced")],
    checkpoint: Annotated[str | None, typer.Option(help="name of a checkpoint (default: the best one)")] = None,
    dataset: Annotated[Path | None, typer.Option(help="folder of the run's dataset, if it was moved")] = None,
    quantise: Annotated[
        Literal["int8"] | None, typer.Option(help="store tables and item vectors in rows of 8-bit integers")
    ] = None,
    index: Annotated[
        bool | None,
        typer.Option("--index/--no-index", help="FAISS index of the items (default: if faiss-cpu is installed)"),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="write an ONNX file too")] = False,
    users: Annotated[int, typer.Option(min=1, help="users on which the export is compared with the model")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Export a trained model to a folder for serving."""
    check_installed("export", TRAINING)
    from cluster.driver.export import export_run
    from trainer.export.write import ExportOptions

    console = console_for(as_json)
    options = ExportOptions("float32" if quantise is None else quantise, index, onnx, users)
    manifest = export_run(
        path_of(run),
        local_path(out, "--out"),
        options,
        checkpoint,
        None if dataset is None else path_of(dataset),
        lambda text: console.print(text, highlight=False, soft_wrap=True),
    )
    if as_json:
        print_json({"folder": str(out), **asdict(manifest)})
    else:
        _show(console, out, manifest)


def _show(console: "Console", out: Path, manifest: "Manifest") -> None:
    sizes = manifest.num_bytes
    console.print(f"export: {out}", highlight=False, soft_wrap=True)
    console.print(
        f"tables and item vectors: {sizes['stored'] / 1e6:.1f} MB (float32: {sizes['float32'] / 1e6:.1f} MB)",
        highlight=False,
    )
    for name, value in (manifest.parity | (manifest.index or {})).items():
        if isinstance(value, float):
            console.print(f"{name}: {value:.6g}", highlight=False)
