"""The `source` section of the manifest: settings, files, column types and times of the logs, written and read back."""

import base64
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from sharding.config import HashIdsConfig
from trainer.data.dataset.manifest import Manifest
from trainer.data.logs.columns import SourceName
from trainer.data.logs.contract import Contract
from trainer.data.prepare.observed import observed_in
from trainer.data.prepare.read_pass import ITEMS
from trainer.data.prepare.totals import Totals
from trainer.data.prepare.vocabularies import item_collisions
from trainer.data.prepare.work import Partitioning


def source_of(totals: Totals) -> dict[str, Any]:
    """Return the `source` section of the manifest."""
    job = totals.job
    files = job.request.described_files
    rows: Counter[tuple[str, str]] = Counter()
    hashes: dict[tuple[str, str], str] = {}
    for number, result in totals.read.items():
        chunk = job.inputs.chunks[number]
        rows[(chunk.source, chunk.file.name)] += result.num_rows
        if result.sha256 is not None:
            hashes[(chunk.source, chunk.file.name)] = result.sha256
    old = {(f["source"], f["path"]): f for f in job.existing.manifest.source["files"]} if job.existing else {}
    read_now = {(source, file.name) for source, group in job.inputs.files.items() for file in group}
    for file in files:
        key = (file["source"], file["path"])
        if key in read_now:
            file |= {"rows": rows[key], "generation": job.generation}
            if key in hashes:
                file["sha256"] = hashes[key]
            if file["path"] in job.inputs.unreadable:
                file["unreadable"] = job.inputs.unreadable[file["path"]]
        else:
            file |= {
                name: old[key][name] for name in ("rows", "generation", "unreadable", "sha256") if name in old[key]
            }
    first, last = totals.values.times or (None, None)
    if job.existing is not None:
        before = job.existing.manifest.source["time"]
        spans = [t for t in (first, last, before["first"], before["last"]) if t is not None]
        first, last = (min(spans), max(spans)) if spans else (None, None)
    return {
        "settings": job.request.settings,
        "files": files,
        "columns": {name: _columns(contract) for name, contract in job.inputs.contracts.items()},
        "contracts": {name: _packed(contract) for name, contract in job.inputs.contracts.items()},
        "time": {"kind": job.inputs.time_kind, "first": first, "last": last},
        "observed": observed_in(job, totals.read),
        "partitioning": {
            "num_hashed": totals.group_job.partitioning.num_hashed,
            "shares": list(totals.group_job.partitioning.shares),
        },
        "item_collisions": _item_collisions(totals),
    }


def _item_collisions(totals: Totals) -> dict[str, Any] | None:
    config = totals.job.request.ids[ITEMS]
    catalogue = totals.ids[ITEMS].vocabulary
    return item_collisions(catalogue, config) if isinstance(config, HashIdsConfig) and catalogue is not None else None


def _columns(contract: Contract) -> dict[str, dict[str, str]]:
    return {
        column.name: {"column": column.source, "type": str(agreed)}
        for column, agreed in zip(contract.columns, contract.types, strict=True)
    }


def _packed(contract: Contract) -> str:
    """Serialize the exact types of a contract, with which an append compares new files."""
    schema = pa.schema(zip((c.name for c in contract.columns), contract.types, strict=True))
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def contracts_of(manifest: Manifest, job_columns: Mapping[SourceName, Any]) -> dict[SourceName, Contract]:
    """Return the contracts that a dataset was made under.

    Args:
        manifest: the manifest of the dataset.
        job_columns: the columns of each source.
    """
    contracts: dict[SourceName, Contract] = {}
    for name, columns in job_columns.items():
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(manifest.source["contracts"][name])))
        contracts[name] = Contract(columns, tuple(schema.field(column.name).type for column in columns))
    return contracts


def partitioning_of(manifest: Manifest) -> Partitioning:
    """Return how the users of a dataset are spread over partitions."""
    values = manifest.source["partitioning"]
    return Partitioning(values["num_hashed"], tuple(values["shares"]))
