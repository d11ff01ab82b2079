"""Saving and loading of tensors through torch.distributed.checkpoint.

A checkpoint holds tensors only, under flat names (trainer.checkpoint.keys). torch reshards them exactly if the world size or the
plan differs at loading.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from sharding.config import TableConfig
from sharding.tables.optimizers import Optimizers
from sharding.world import World
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.finite import broken_tensors
from trainer.checkpoint.folder import CheckpointManifest, StoredCheckpoint
from trainer.checkpoint.keys import model_names, step_key, tensors_of
from trainer.checkpoint.reader import CheckpointReader
from trainer.checkpoint.replicas import compare_replicas
from trainer.checkpoint.writing import CheckpointWriter
from trainer.errors import CheckpointError, NonFiniteWeightsError, first_line
from trainer.fault_points import reach
from trainer.optim.ema import WeightEma
from trainer.storage.files import refusal_cause
from trainer.storage.objects.paths import remove_tree
from trainer.storage.retries import NO_RETRIES, Retries


def save(
    folder: Path,
    state: dict[str, Any],
    world: World,
    describe: Callable[[dict[str, dict[str, Any]]], CheckpointManifest],
    step: int,
    retries: Retries = NO_RETRIES,
    warn: Callable[[str], object] = lambda text: None,
) -> Path:
    """Write a checkpoint into a fresh attempt, commit it, and return its path. Collective.

    Args:
        folder: The folder of checkpoints.
        state: The tensors by name.
        world: All ranks.
        describe: Returns the manifest, from the hashes and sizes of the files.
        step: The steps trained.
        retries: The attempts after errors of the storage that may pass.
        warn: Receives a text about each such error, on the first rank.

    Raises:
        NonFiniteWeightsError: A rank holds a value that is not finite. Raised on every rank, before anything is written.
        ReplicasDifferError: Copies of a tensor differ between ranks. Raised before anything is written.
        CheckpointError: A rank could not write.
    """
    broken = tuple(broken_tensors(state, world))
    if broken:
        raise NonFiniteWeightsError(
            f"checkpoint {folder}: step {step} not saved, not finite: {', '.join(broken)}", broken, step
        )
    compare_replicas(state, world, step)
    final = folder / checkpoint_folder.name_of(step)

    def explained(work: Callable[[], Path]) -> Path:
        """Repeat the work of the first rank after errors that may pass. Raises CheckpointError after others."""
        try:
            return retries.run(
                work, lambda error, wait: warn(f"checkpoint {final}: {error}; tried again after {wait:g} s")
            )
        except OSError as error:
            raise not_written(final, error) from None

    attempt = world.on_first(lambda: explained(lambda: checkpoint_folder.new_attempt(folder, step)))
    reach("staging", world.rank, step)
    try:
        files = _write_files(final, attempt, state, world, step, retries, warn)

        def commit() -> Path:
            reach("before commit", world.rank, step)
            path = checkpoint_folder.commit(attempt, describe(files))
            reach("after commit", world.rank, step)
            return path

        return world.on_first(lambda: explained(commit))
    except BaseException:
        # All ranks raise, but some may still be writing. The next start removes what they leave behind.
        if world.is_first:
            remove_tree(attempt, ignore_errors=True)
        raise


def _write_files(
    final: Path,
    attempt: Path,
    state: dict[str, Any],
    world: World,
    step: int,
    retries: Retries,
    warn: Callable[[str], object],
) -> dict[str, dict[str, Any]]:
    """Write the files of all ranks, and return the hash and size of each. Collective. Raises CheckpointError."""
    writer = CheckpointWriter(attempt, lambda: reach("writing", world.rank, step), retries)
    try:
        dcp.save(state, storage_writer=writer, process_group=world.group)
    except CheckpointException as error:
        rank, cause = next(iter(error.failures.items()))
        raise not_written(final, cause[0], f" by rank {rank}") from None
    reach("hashing", world.rank, step)
    files: dict[str, dict[str, Any]] = {}
    for rank, gathered in enumerate(world.gather_objects((writer.written, writer.retried))):
        written, retried = cast(tuple[dict[str, dict[str, Any]], list[str]], gathered)
        files.update(written)
        for text in retried if world.is_first else ():
            warn(f"checkpoint {final}: rank {rank}: {text}")
    return files


def load(
    checkpoint: StoredCheckpoint,
    sharded_model: nn.Module,
    tables: Collection[str],
    optimizers: Optimizers | None,
    extra: Mapping[str, Tensor] | None = None,
    ema: WeightEma | None = None,
    tables_grew: bool = False,
) -> None:
    """Load a verified checkpoint, resharded as needed. Collective.

    Args:
        checkpoint: The checkpoint.
        sharded_model: The model with sharded tables.
        tables: The names of its tables.
        optimizers: The optimizers to load, or None.
        extra: Other tensors to load, whole or divided over ranks.
        ema: The moving average of dense weights to load, or None.
        tables_grew: True if tables may have more rows than the checkpoint. These rows keep their values.

    Raises:
        CheckpointError: A tensor is missing or does not fit. Raised before anything is overwritten.
    """
    if optimizers is not None:
        refuse_other_optimizers(checkpoint, optimizers.configs)
        optimizers.materialize_dense_state()
    wanted = tensors_of(sharded_model, tables, optimizers, extra, ema)
    reader = CheckpointReader(checkpoint.data)
    try:
        saved = reader.read_metadata().state_dict_metadata
        if optimizers is not None:
            _count_updates(checkpoint, wanted, saved, optimizers)
        if optimizers is not None and _before_first_step(checkpoint):
            # Earlier versions did not save state that torch had not created yet. Its initial values were created above.
            weights = model_names(sharded_model, tables)
            wanted = {key: value for key, value in wanted.items() if key in saved or key in weights}
        _refuse_misfits(checkpoint.path, wanted, saved, tables_grew)
        planner = _GrowingPlanner() if tables_grew else None
        dcp.load(wanted, storage_reader=reader, planner=planner, no_dist=not dist.is_initialized())
    except (CheckpointException, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: does not fit the model ({_first_cause(error)}); was it made with another config?"
        ) from None
    with torch.no_grad():
        sharded_model.load_state_dict({name: wanted[key] for key, name in model_names(sharded_model, tables).items()})


def _count_updates(
    checkpoint: StoredCheckpoint, wanted: dict[str, Any], saved: Mapping[str, Any], optimizers: Optimizers
) -> None:
    """Derive the number of updates from the step if a checkpoint of an earlier version lacks it, and drop it from `wanted`."""
    for key in map(step_key, optimizers.counting_tables):
        if key not in saved:
            del wanted[key]
            optimizers.num_updates.fill_(checkpoint.manifest.step - checkpoint.manifest.metrics.get("skipped_steps", 0))


def _before_first_step(checkpoint: StoredCheckpoint) -> bool:
    """Return True if every step of the checkpoint was skipped, so that no optimizer made a step."""
    return 0 < checkpoint.manifest.step == checkpoint.manifest.metrics.get("skipped_steps")


def refuse_other_optimizers(checkpoint: StoredCheckpoint, tables: Mapping[str, TableConfig]) -> None:
    """Raise CheckpointError with the first table for which the state of another optimizer was saved."""
    for name, saved in checkpoint.manifest.config.get("tables", {}).items():
        table = tables.get(name)
        if table is not None and saved["optimizer"] != table.optimizer:
            raise CheckpointError(
                f"checkpoint {checkpoint.path}: holds the state of {saved['optimizer']} for tables.{name}, the config says "
                f"{table.optimizer}; set tables.{name}.optimizer = {saved['optimizer']}, or train again in another run.dir"
            )


class _GrowingPlanner(DefaultLoadPlanner):
    """A planner that loads into tables with more rows than the checkpoint. torch itself refuses a tensor of another size."""

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        assert metadata is not None
        saved = dict(metadata.state_dict_metadata)
        for key, value in state_dict.items():
            held = saved.get(key)
            if isinstance(held, TensorStorageMetadata) and _has_grown(key, tuple(held.size), tuple(value.size())):
                saved[key] = replace(held, size=value.size())
        super().set_up_planner(state_dict, replace(metadata, state_dict_metadata=saved), is_coordinator)


def _has_grown(key: str, saved: tuple[int, ...], now: tuple[int, ...]) -> bool:
    """Return True if the tensor is of a table that has more rows now."""
    return key.startswith("table.") and len(saved) == len(now) > 0 and saved[1:] == now[1:] and saved[0] < now[0]


def _refuse_misfits(path: Path, wanted: Mapping[str, Any], saved: Mapping[str, Any], tables_grew: bool = False) -> None:
    """Raise CheckpointError with the first tensor that the checkpoint lacks, or has in another shape."""
    for key, value in wanted.items():
        table = f" (tables.{key.split('.')[1]})" if key.startswith("table.") else ""
        remedy = "restore the config with which the checkpoint was made, or train again in another run.dir"
        if key not in saved:
            others = [name for name in saved if table and name.startswith(key.rsplit(".", 1)[0] + ".")]
            held = (
                f"; of this table it holds {', '.join(sorted(name.rsplit('.', 1)[1] for name in others))}"
                if others
                else ""
            )
            raise CheckpointError(f"checkpoint {path}: does not fit the model: it has no {key}{table}{held}; {remedy}")
        sizes = tuple(saved[key].size), tuple(value.size())
        if sizes[0] != sizes[1] and not (tables_grew and _has_grown(key, *sizes)):
            raise CheckpointError(
                f"checkpoint {path}: does not fit the model: {key} is {_size(saved[key].size)} in the checkpoint and "
                f"{_size(value.size())} in the model{table}; {remedy}"
            )


def _size(size: Iterable[int]) -> str:
    return " x ".join(str(n) for n in size) or "a single number"


def find_to_resume(folder: Path, world: World) -> tuple[StoredCheckpoint | None, list[str]]:
    """Return the newest checkpoint that verifies, and a message for each newer one; the same on every rank. Collective.

    The ranks share the work: each compares some of the files with their hashes.

    Raises:
        CheckpointError: A storage does not answer, or a disk reports an error. Raised on all ranks.
    """

    def look() -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint_folder.remove_attempts(folder)
        return checkpoint_folder.present(folder)

    complaints: list[str] = []
    for path in world.on_first(look):
        checkpoint, complaint = verify_together(path, world)
        if checkpoint is not None:
            return checkpoint, complaints
        complaints.append(complaint)
    return None, complaints


def verify_together(path: Path, world: World) -> tuple[StoredCheckpoint | None, str]:
    """Compare the files of a checkpoint with their hashes, each rank some of them. Collective.

    Returns the checkpoint, or None with the first complaint of a rank; the same on every rank.

    Raises:
        CheckpointError: A storage does not answer, or a disk reports an error. Raised on all ranks.
    """
    manifest, complaint, failure = None, None, None
    try:
        manifest = checkpoint_folder.read(path)
        checkpoint_folder.check_files(path, manifest, world.rank, world.world_size)
    except CheckpointError as error:
        complaint = str(error)
    except OSError as error:  # of the storage. Training from an earlier checkpoint would only lose work
        failure = f"checkpoint {path}: cannot be read: {refusal_cause(error) or first_line(error)}"
    answers = cast(list[tuple[str | None, str | None]], world.gather_objects((complaint, failure)))
    failures = [text for _, text in answers if text is not None]
    if failures:
        raise CheckpointError(failures[0])
    complaints = [text for text, _ in answers if text is not None]
    if not complaints and manifest is not None:
        return StoredCheckpoint(path, manifest), ""
    return None, complaints[0]


def not_written(path: Path, error: BaseException, by: str = "") -> CheckpointError:
    """Return the error of a checkpoint that could not be written, with what to do where a disk refused it."""
    cause = refusal_cause(error) or first_line(error)
    return CheckpointError(f"checkpoint {path}: could not be written{by}: {cause}")


def _first_cause(error: BaseException) -> str:
    failures = getattr(error, "failures", None)
    if failures:
        rank, (cause, _) = next(iter(failures.items()))
        return f"rank {rank}: {cause}"
    return first_line(error)
