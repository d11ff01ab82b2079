"""The manifest of an export, as far as it follows from the model alone."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trainer.export import folder as export_folder
from trainer.export.folder import Manifest, ProgramInput
from trainer.export.inputs import Form
from trainer.export.tables import Precision
from trainer.export.trace import dynamic_shapes, example_inputs
from trainer.inference.trained_model import TrainedModel

PACKAGES = ("torch", "numpy", "pyarrow")


def describe(trained: TrainedModel, form: Form, precision: Precision, shoal_version: str) -> Manifest:
    """Return the manifest without figures and files."""
    is_ranker = trained.manifest.task == "ranking"
    return Manifest(
        task=trained.manifest.task,
        precision=precision,
        form=export_folder.form_values(form),
        inputs=_described_inputs(form, is_ranker),
        labels=tuple(trained.model.labels) if is_ranker else (),
        scores_unknown=trained.catalogue.scores_unknown,
        num_items=trained.num_items,
        source=_source(trained),
        versions={"shoal": shoal_version, **_versions()},
    )


def _described_inputs(form: Form, is_ranker: bool) -> tuple[ProgramInput, ...]:
    examples = example_inputs(form, is_ranker)
    shapes = dynamic_shapes(examples, form)
    return tuple(
        ProgramInput(
            name,
            str(tensor.dtype).removeprefix("torch."),
            tuple(
                _size(shapes[name][axis]) if axis in shapes[name] else size for axis, size in enumerate(tensor.shape)
            ),
        )
        for name, tensor in examples.items()
    )


def _size(dim: Any) -> str:
    return str(dim.__name__).replace("1*", "")


def _source(trained: TrainedModel) -> dict[str, Any]:
    checkpoint = trained.checkpoint
    return {
        "run": str(trained.job.run_dir),
        "checkpoint": checkpoint.path.name,
        "step": checkpoint.manifest.step,
        "config_digest": trained.job.config_digest,
        "dataset_digest": trained.manifest.digest,
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions
