"""Writes the export of a trained model, and measures its differences from the model (trainer.export.folder describes the files)."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.ranking.reach import reach_of
from sharding.dynamic_ids.state import DynamicIdsState
from trainer.data.dataset.manifest import write_manifest as write_dataset_manifest
from trainer.errors import UserError
from trainer.export import folder as export_folder
from trainer.export import index as item_index
from trainer.export import measure, onnx, parity
from trainer.export.build import Weights, program_of, weights_of
from trainer.export.describe import describe
from trainer.export.folder import Manifest
from trainer.export.inputs import DynamicRows, Form
from trainer.export.run_program import callable_of
from trainer.export.search import FloatVectors, Int8Vectors, Vectors
from trainer.export.tables import Precision, quantise
from trainer.export.trace import example_inputs, trace
from trainer.inference import next_item
from trainer.inference.trained_model import TrainedModel
from trainer.storage.files import write_json_atomically
from trainer.storage.objects.paths import copy_file

Say = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """The content of an export."""

    precision: Precision = "float32"
    """Of the tables and the item vectors."""
    index: bool | None = None
    """Whether to build an index of the items; None: if FAISS is installed and the model has item vectors."""
    onnx: bool = False
    """Whether to write an ONNX file too."""
    num_users: int = 1000
    """Users on which the export is compared with the trained model."""


def write_export(trained: TrainedModel, out: Path, options: ExportOptions, shoal_version: str, say: Say) -> Manifest:
    """Write the export of a model, and return its manifest. The folder appears when it is complete.

    Args:
        trained: the model.
        out: the folder, which must be empty or absent, or hold an earlier export, which is replaced.
        options: what it contains.
        shoal_version: the version of Shoal.
        say: called with messages for the user.

    Raises:
        UserError: the folder holds something else, or a package is missing. The message names it.
    """
    _check_options(options, trained.manifest.task == "ranking")
    _check_free(out)
    partial = out.resolve().with_name(f".{out.resolve().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was interrupted
    partial.mkdir(parents=True)
    try:
        manifest = _write(trained, partial, options, shoal_version, say)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    return manifest


def _write(trained: TrainedModel, out: Path, options: ExportOptions, shoal_version: str, say: Say) -> Manifest:
    is_ranker = trained.manifest.task == "ranking"
    form = form_of(trained)
    weights = weights_of(trained)
    program = trace(program_of(trained, weights, options.precision), form, is_ranker)
    torch.export.save(program, out / export_folder.PROGRAM)
    _write_encoding(trained, form, out)
    inputs = example_inputs(form, is_ranker)
    work = measure.Exported(trained, callable_of(program), tuple(inputs), form)
    sample = parity.sample_users(trained, options.num_users)
    sizes = _sizes(weights, options.precision)
    index = None
    if is_ranker:
        measured = measure.of_ranker(work, sample)
    else:
        of_items = next_item.item_vectors(trained)
        items = _write_items(of_items, options.precision, out)
        sizes = {"float32": sizes["float32"] + 4 * of_items.numel(), "stored": sizes["stored"] + _bytes_of(items)}
        measured, users = measure.of_next_item(work, sample, FloatVectors(of_items.numpy()), items)
        index = _write_index(items, users, options, out, say)
    missed = parity.misses(measured, options.precision)
    for miss in missed:
        say(f"WARNING: the export differs too much from the trained model: {miss}")
    manifest = replace(
        describe(trained, form, options.precision, shoal_version),
        parity=measured | {"missed": missed},
        num_bytes=sizes,
        index=index,
        onnx=onnx.write_onnx(program, inputs, out / export_folder.ONNX) if options.onnx else None,
    )
    manifest = replace(manifest, files=export_folder.stored_files(out))
    export_folder.write_manifest(out, manifest)
    return manifest


def form_of(trained: TrainedModel) -> Form:
    """Return what the program of a model needs of histories."""
    config = trained.model.config
    dynamic = {table: _rows_of(state) for table, state in trained.dynamic.states.items()}
    inputs = trained.catalogue.inputs
    if trained.manifest.task == "next_item":
        return Form(inputs, config.max_history, config.masks_items, dynamic=dynamic)
    search = config.interest.search
    least = search.num_found if search.kind == "similarity" else 1
    return Form(inputs, config.max_history, receptive=reach_of(config).receptive, least_places=least, dynamic=dynamic)


def _rows_of(state: DynamicIdsState) -> DynamicRows:
    """Return the ids with a row, in ascending order, of the mapping of one process."""
    used = state.entries.used(with_row=True)
    used = used[np.argsort(state.entries.ids[used])]
    return DynamicRows(state.entries.ids[used], state.entries.rows[used])


def _check_options(options: ExportOptions, is_ranker: bool) -> None:
    if options.index and is_ranker:
        raise UserError("index: a ranker scores pairs of a user and an item, so there are no item vectors to search")
    if options.index and not item_index.is_installed():
        raise UserError(f"index: needs the package faiss-cpu, which is not installed; {item_index.INSTALL}")
    if options.onnx:
        onnx.check_installed()


def _check_free(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        export_folder.read_manifest(out)
    except UserError:
        raise UserError(
            f"{out}: is not empty, and holds no export that could be replaced; choose another folder"
        ) from None


def _write_encoding(trained: TrainedModel, form: Form, out: Path) -> None:
    """Write what turns raw values into inputs: config, manifest and vocabularies of the dataset, rows of dynamic ids."""
    write_json_atomically(out / export_folder.CONFIG, _config_values(trained))
    encoding = out / export_folder.ENCODING
    encoding.mkdir()
    manifest = trained.manifest
    for file in manifest.vocabularies.values():
        copy_file(trained.job.dataset_dir / file.path, encoding / file.path)
    write_dataset_manifest(encoding, replace(manifest, parts=(), cuts=(), sketches={}, items=None))
    if form.dynamic:
        arrays: dict[str, np.ndarray] = {}
        for table, rows in form.dynamic.items():
            arrays |= {f"{table}.ids": rows.ids, f"{table}.rows": rows.rows}
        np.savez(out / export_folder.DYNAMIC, **arrays)  # type: ignore[arg-type]


def _config_values(trained: TrainedModel) -> dict[str, Any]:
    return {name: section for name, section in trained.job.config_values.items() if name != "cluster"}


def _write_items(vectors: torch.Tensor, precision: Precision, out: Path) -> Vectors:
    """Write the item vectors, and return them as the export has them."""
    if precision == "float32":
        np.save(out / export_folder.ITEM_VECTORS, vectors.numpy())
        return FloatVectors(vectors.numpy())
    codes, scale, offset = quantise(vectors)
    steps = torch.cat((scale, offset), dim=1)
    np.save(out / export_folder.ITEM_CODES, codes.numpy())
    np.save(out / export_folder.ITEM_STEPS, steps.numpy())
    return Int8Vectors(codes.numpy(), steps.numpy())


def _write_index(
    items: Vectors, users: torch.Tensor, options: ExportOptions, out: Path, say: Say
) -> dict[str, Any] | None:
    """Write the index of the items, and return its description with its recall for some users, or None."""
    if options.index is False:
        return None
    if not item_index.is_installed():
        say(f"no index of the items, which are searched exactly: faiss-cpu is not installed ({item_index.INSTALL})")
        return None
    path = out / export_folder.INDEX
    described = item_index.build_index(items, path)
    index = item_index.read_index(path)
    return described | parity.index_recall(users, items, lambda given, k: item_index.search(index, given, k))


def _sizes(weights: Weights, precision: Precision) -> dict[str, int]:
    whole = sum(4 * weight.numel() for weight in weights.tables.values())
    eight_bit = sum(weight.numel() + 8 * weight.shape[0] for weight in weights.tables.values())
    return {"float32": whole, "stored": whole if precision == "float32" else eight_bit}


def _bytes_of(vectors: Vectors) -> int:
    if isinstance(vectors, Int8Vectors):
        return int(vectors.codes.nbytes + vectors.steps.nbytes)
    assert isinstance(vectors, FloatVectors)
    return int(vectors.values.nbytes)
