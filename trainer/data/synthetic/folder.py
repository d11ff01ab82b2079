"""The folder of a synthetic log of any kind: files that are generated independently, and truth/truth.json last.

A folder with the same finished log is left unchanged. A folder with anything else is refused.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import UserError
from trainer.storage.files import replace_durably, write_json_atomically


@dataclass(frozen=True)
class LogKind:
    """Functions that define a kind of log. Its config has num_blocks."""

    # Version of the files' format.
    format_version: int
    # (config) to the world.
    build_world: Callable[[Any], Any]
    # (config, world, truth folder): writes the ground truth.
    write_world: Callable[[Any, Any, Path], None]
    # (config, world, index, folder) to the summary of a block, with block_index.
    generate_block: Callable[[Any, Any, int, Path], Any]
    # (config, summaries of blocks) to the summary of the log.
    summarize: Callable[[Any, Sequence[Any]], Any]
    # Type of that summary.
    summary_type: type
    # (index) to the files of a block, relative to the folder.
    files: Callable[[int], list[str]]

    def blocks_one_by_one(self, config: Any, world: Any, folder: Path) -> Iterator[Any]:
        """Generate every block in this process, in order."""
        return (self.generate_block(config, world, index, folder) for index in range(config.num_blocks))


def write_log(
    kind: LogKind,
    config: Any,
    folder: Path,
    on_progress: Callable[[int, int], None] | None,
    make_blocks: Callable[[Any, Any, Path], Iterator[Any]],
) -> Any:
    """Write all files of a log. Blocks may finish in any order.

    Args:
        kind: kind of log.
        config: its settings.
        folder: output folder.
        on_progress: called with the finished blocks and all blocks.
        make_blocks: generates all blocks and yields their summaries.

    Raises:
        UserError: if the folder holds anything else, or cannot be written.
    """
    existing = _finished_log(kind, config, folder)
    if existing is not None:
        return existing
    blocks: list[Any] = []
    try:
        (folder / "truth").mkdir(parents=True, exist_ok=True)
        world = kind.build_world(config)
        kind.write_world(config, world, folder / "truth")
        for block in make_blocks(config, world, folder):
            blocks.append(block)
            if on_progress is not None:
                on_progress(len(blocks), config.num_blocks)
    except OSError as error:
        raise UserError(
            f"synthetic log {folder}: cannot be written ({error}); free space on that disk or choose another folder, "
            "and delete this one"
        ) from error
    assert sorted(block.block_index for block in blocks) == list(range(config.num_blocks)), "a block is missing"
    summary = kind.summarize(config, blocks)
    truth = {"format_version": kind.format_version, "config": config.model_dump(mode="json")}
    write_json_atomically(folder / "truth" / "truth.json", {**truth, "summary": asdict(summary)})
    return summary


def _finished_log(kind: LogKind, config: Any, folder: Path) -> Any:
    """Return the summary of the log in `folder`, or None if the folder is empty or absent."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    remedy = "choose another folder, or delete this one"
    try:
        truth = json.loads((folder / "truth" / "truth.json").read_text(encoding="utf-8"))
        same = truth["format_version"] == kind.format_version and truth["config"] == config.model_dump(mode="json")
        summary = kind.summary_type(**truth["summary"]) if same else None
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError):
        raise UserError(
            f"synthetic log {folder}: the folder is not empty, and contains no finished synthetic log "
            f"(possibly an interrupted one); {remedy}"
        ) from None
    if summary is None:
        raise UserError(f"synthetic log {folder}: holds a log made with other settings; {remedy}")
    for index in range(config.num_blocks):
        for name in kind.files(index):
            if not (folder / name).exists():
                raise UserError(f"synthetic log {folder}: {name} is missing; {remedy}")
    return summary


def write_table(table: pa.Table, path: Path) -> None:
    """Write to a temporary file and rename it, so that a task that is killed and repeated leaves no partial file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # Differences of ids and times compress better, and three times faster, than a dictionary of them.
    packed = {
        field.name: "DELTA_BINARY_PACKED"
        for field in table.schema
        if pa.types.is_int32(field.type) or pa.types.is_int64(field.type)
    }
    try:
        pq.write_table(
            table, temporary, compression="zstd", use_dictionary=False, column_encoding=packed, write_page_checksum=True
        )
        replace_durably(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
