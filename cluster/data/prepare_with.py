"""Preparation of new logs with the vocabularies, encoders and fits of an existing dataset, as Ray tasks.

    derived = Derivation(history=True, targets=True)
    manifest = prepare_with(run.dataset_dir, config_of_the_new_logs, folder, derived, on_progress)

The existing dataset, the base, is never changed. The result is a dataset in a folder of its own, which every reader of
datasets reads. An interrupted preparation continues where it stopped, and a finished one is found again.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from cluster.config.run_config import Config
from cluster.data.prepare import OnProgress, build, commit, max_tasks, scan_all, time_rules
from trainer.data.dataset.folder import DatasetRequest, Existing, attempt
from trainer.data.dataset.manifest import Manifest, read_manifest, verify_dataset
from trainer.data.logs.columns import columns_of
from trainer.data.logs.contract import find_inputs, inspect_inputs
from trainer.data.prepare.derived import Derivation, check_encoders, find_derived, link_files, remove_derived
from trainer.data.prepare.source import contracts_of, partitioning_of
from trainer.data.prepare.work import PrepareJob


def prepare_with(
    base: Path,
    config: Config,
    folder: Path,
    derivation: Derivation,
    on_progress: OnProgress,
    read_catalogue: bool = True,
    connect: Callable[[], None] = lambda: None,
    on_phase: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Encode the logs of a config as an existing dataset encoded its own, or return the dataset if that was done before.

    Values that the base does not know get the id of unknown values, and are counted (Manifest.derived, Manifest.features).
    Events before the last event that the base has of a user are rejected as "late".

    Args:
        base: folder of the existing dataset. It is only read.
        config: `logs` describes the new logs. Columns and formats may differ from those of the base, features and labels
            may not. `split` has no effect.
        folder: folder of the new dataset. A derived dataset of other logs that it holds is replaced.
        derivation: whether histories begin with the events of the base, and whether the new events are test targets.
        on_progress: called after each task.
        read_catalogue: whether the files of items and users are read again, so that new items and users have features.
            Otherwise items of the base keep their features, and new ones have none.
        connect: joins Ray, before the first task. It is not called if there is nothing to do.
        on_phase: called with the name of a phase that takes time.

    Returns:
        The manifest of the new dataset. Checkpoints of a run on the base can be evaluated on it.

    Raises:
        UserError: if a setting that decides the encoding differs, or for any reason of `prepare`.
    """
    folder = folder.absolute()
    known = read_manifest(base)
    unread = {} if read_catalogue else {"items": None, "users": None}
    files = find_inputs(config.logs.model_copy(update=unread))
    request = DatasetRequest(config.logs, config.split, config.ids_of_tables, files, derivation.settings(known))
    check_encoders(known, request, base)
    done = find_derived(folder, request)
    if done is not None:
        return done
    verify_dataset(base, known)
    on_phase("reading the headers of the logs")
    contracts = contracts_of(known, columns_of(config.logs))
    inputs = inspect_inputs(files, config.logs, contracts, scan=partial(scan_all, config, connect))
    connect()
    with attempt(folder, request.fingerprint) as work:
        done = find_derived(folder, request)  # made by another command in the meantime
        if done is not None:
            return done
        remove_derived(folder)
        start = Existing(derivation.start_from(known), files)
        link_files(base, folder, start.manifest)
        rules = time_rules(config, inputs)
        num_hashed = partitioning_of(known).num_hashed
        job = PrepareJob(folder, work, request, inputs, rules, derivation.cuts, num_hashed, start)
        manifest = build(config, job, max_tasks(config), on_progress)
        commit(work, folder, manifest)
    return manifest
