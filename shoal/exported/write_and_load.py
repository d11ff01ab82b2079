"""Exports of trained models: writing one, and loading one without Ray, TorchRec and the dataset.

Importing this module loads neither torch nor ray; the functions load torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cluster.doctor.packages import TRAINING, check_installed
from shoal.exported.ranker import ExportedRanker
from shoal.exported.recommender import ExportedRecommender
from trainer.storage.objects.paths import local_path, path_of

if TYPE_CHECKING:
    from trainer.export.folder import Manifest


def export(
    run: str | Path,
    out: str | Path,
    *,
    checkpoint: str | None = None,
    dataset: str | Path | None = None,
    quantise: Literal["int8"] | None = None,
    index: bool | None = None,
    onnx: bool = False,
    users: int = 1000,
    quiet: bool = False,
) -> "Manifest":
    """Export a trained model to a folder that scores raw histories without Ray, TorchRec and the dataset.

    Args:
        run: folder of a run or of one of its checkpoints, or a config file with the run as its `run.dir`.
        out: folder to write. An earlier export in it is replaced.
        checkpoint: name of a checkpoint of the run; by default the best, or the newest if none is marked best.
        dataset: folder of the run's dataset, if it was moved.
        quantise: "int8" stores tables and item vectors in rows of 8-bit integers; by default they are in float32.
        index: whether to build a FAISS index of the items; by default if faiss-cpu is installed and the model has item vectors.
        onnx: whether to write an ONNX file too.
        users: number of users on which the export is compared with the trained model.
        quiet: whether to print nothing. Differences beyond the targets are then in `parity["missed"]` of the result alone.

    Returns:
        The manifest, with the measured differences.

    Raises:
        UserError: there is no such run, dataset or package, or the folder is not free. The message says what to do.
        CheckpointError: there is no such checkpoint, or it is damaged. It is a UserError.
    """
    check_installed("export", TRAINING)
    from cluster.driver.export import export_run
    from trainer.export.write import ExportOptions

    options = ExportOptions("float32" if quantise is None else quantise, index, onnx, users)
    say = (lambda text: None) if quiet else print
    return export_run(
        path_of(run), local_path(out, "out"), options, checkpoint, None if dataset is None else path_of(dataset), say
    )


def load_export(folder: str | Path, *, verify: bool = True) -> ExportedRecommender | ExportedRanker:
    """Load an export. It needs torch, numpy, pyarrow and pydantic.

    Args:
        folder: folder that `shoal export` has written.
        verify: whether to compare all files with their hashes.

    Raises:
        UserError: the folder holds no export, or a file is damaged. The message names it.
    """
    from trainer.export import folder as export_folder

    path = Path(folder)
    manifest = export_folder.read_manifest(path)
    if verify:
        export_folder.verify(path, manifest)
    return ExportedRanker(path, manifest) if manifest.task == "ranking" else ExportedRecommender(path, manifest)
