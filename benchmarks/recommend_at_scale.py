"""`shoal recommend` with many users and items: speed, and memory of every process: `python -m benchmarks.recommend_at_scale`.

For each number of users it writes a log, prepares it, trains a small model for some steps, and runs the command. The log and the
model stay in `--folder`, if it is given, and are used again. The ceiling runs afterwards, in this process and on as many threads.
Memory is the resident set of each process that the command starts, sampled every half second. It counts shared pages for each.

`--into FILE` adds the figures to a file, and replaces those of the same sizes. `--page FILE` writes them as a table into a page.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.evaluating import CEILING_USERS, bare_product, bare_scores, peak_matrices
from benchmarks.pages import markdown, stored_figures, with_table
from benchmarks.scoring import ready_batch
from trainer.loop.memory import keep_freed_memory
from trainer.recommend.folder import read_recommendations

RESULTS = Path("docs/results/recommend_at_scale.json")
FEWEST_EVENTS, MOST_EVENTS = 10, 30  # of a user
MAX_HISTORY = 50
TOP = 10
STEPS = 20  # of training
SAMPLE_SECONDS = 0.5
MEASURED_USERS = 2 * CEILING_USERS  # of the ceiling
MARK = "recommend_at_scale"


@dataclass(frozen=True)
class Figures:
    """The figures of one command."""

    users: int
    """Number of users."""
    items: int
    """Number of items."""
    width: int
    """Width of the vectors."""
    workers: int
    """Number of workers, of one thread each."""
    top: int
    """Number of items per user."""
    users_per_second: float
    """Speed of the workers, without their start."""
    ceiling_users_per_second: float
    """Forward pass at the peak of matrix products, bare product, and torch.topk of it, on as many threads."""
    command_seconds: float
    """Duration of the whole command, with Ray's start."""
    output_bytes: int
    """Size of the files."""
    worker_peak_bytes: list[int]
    """Peak memory of each worker."""
    driver_peak_bytes: int
    """Peak memory of the process of the command."""
    other_peak_bytes: int
    """Peak memory of Ray's processes together."""
    total_peak_bytes: int
    """Peak of the sum over all processes."""

    @property
    def key(self) -> tuple[int, ...]:
        """Return the sizes, which name the figures."""
        return self.items, self.users, self.workers, self.width


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure shoal recommend with many users and items.")
    parser.add_argument("--users", type=int, nargs="+", default=[100_000, 200_000], help="numbers of users")
    parser.add_argument("--items", type=int, default=1_000_000, help="number of items")
    parser.add_argument("--width", type=int, default=32, help="width of the vectors")
    parser.add_argument("--workers", type=int, default=2, help="number of workers, of one thread each")
    parser.add_argument("--folder", type=Path, help="folder for logs, datasets and runs; default: a temporary one")
    parser.add_argument("--only-build", action="store_true", help="prepare and train, without the measurement")
    parser.add_argument("--into", type=Path, help="JSON file to add the figures to")
    parser.add_argument("--page", type=Path, help="page to write the table of the file into, and nothing else")
    arguments = parser.parse_args()
    if arguments.page:
        text = arguments.page.read_text(encoding="utf-8")
        rows = read_figures(arguments.into or RESULTS)
        arguments.page.write_text(with_table(text, MARK, table(rows)), encoding="utf-8")
        return
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="shoal-scale-") as temporary:
        for num_users in arguments.users:
            folder = (arguments.folder or Path(temporary)) / f"{num_users}-{arguments.items}-{arguments.width}"
            config = build(folder, num_users, arguments)
            if arguments.only_build:
                continue
            figures = measure(folder, config, num_users, arguments)
            print(json.dumps(asdict(figures), indent=1), flush=True)
            if arguments.into:
                add(figures, arguments.into)


def build(folder: Path, num_users: int, arguments: argparse.Namespace) -> Path:
    """Write a log and its config, prepare and train, unless the folder has all of it; return the config."""
    config = folder / "config.toml"
    if config.exists():
        return config
    folder.mkdir(parents=True, exist_ok=True)
    write_log(folder / "events.parquet", num_users, arguments.items)
    draft = folder / "draft.toml"
    draft.write_text(_config_text(folder, arguments), encoding="utf-8")
    for command in ("prepare", "train"):
        subprocess.run([*_SHOAL, command, str(draft)], check=True)
    draft.rename(config)
    return config


def write_log(path: Path, num_users: int, num_items: int, seed: int = 1) -> None:
    """Write a log in which every item has an event, and all items about equally many."""
    random = np.random.default_rng(seed)
    lengths = random.integers(FEWEST_EVENTS, MOST_EVENTS + 1, num_users)
    users = np.repeat(np.arange(num_users, dtype=np.int32), lengths)
    if users.size < num_items:
        raise SystemExit(f"{num_users} users have {users.size} events: too few for {num_items} items")
    items = np.resize(random.permutation(num_items).astype(np.int32), users.size)
    random.shuffle(items)
    times = 1_700_000_000 + np.arange(users.size)
    pq.write_table(pa.table({"user_id": users, "item_id": items, "time": times}), path, row_group_size=1 << 20)


def _config_text(folder: Path, arguments: argparse.Namespace) -> str:
    return f"""
[run]
dir = "{folder}/run"
dataset = "{folder}/dataset"
[logs]
path = "{folder}/events.parquet"
[split]
kind = "leave_one_out"
validation_share = 0.001
[model]
max_history = {MAX_HISTORY}
[model.objective]
kind = "sampled_softmax"
num_negatives = 128
[tables.item]
dim = {arguments.width}
[train]
max_steps = {STEPS}
[cluster]
num_workers = {arguments.workers}
cpus_per_worker = 1
"""


_SHOAL = [sys.executable, "-m", "cluster.cli"]


def measure(folder: Path, config: Path, num_users: int, arguments: argparse.Namespace) -> Figures:
    """Run the command while memory is sampled, and then the ceiling."""
    lists = folder / "lists"
    _remove(lists)
    started = time.perf_counter()
    process = subprocess.Popen([*_SHOAL, "recommend", str(config), "--k", str(TOP), "--out", str(lists)])
    memory = Memory(process.pid)
    code = process.wait()
    seconds = time.perf_counter() - started
    memory.stop()
    if code:
        raise SystemExit(code)
    done = read_recommendations(lists)
    assert done is not None
    workers, others = memory.by_role()
    return Figures(
        users=num_users,
        items=arguments.items,
        width=arguments.width,
        workers=arguments.workers,
        top=TOP,
        users_per_second=done.users_per_second,
        ceiling_users_per_second=ceiling(arguments.items, arguments.width, arguments.workers),
        command_seconds=seconds,
        output_bytes=sum(done.files.values()),
        worker_peak_bytes=workers,
        driver_peak_bytes=memory.peaks[process.pid],
        other_peak_bytes=others,
        total_peak_bytes=memory.total,
    )


def ceiling(num_items: int, width: int, num_threads: int) -> float:
    """Return the users per second of the forward pass at the peak of products, the bare product, and its best items."""
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    lengths = np.random.default_rng(1).integers(FEWEST_EVENTS, MOST_EVENTS + 1, MEASURED_USERS)
    users, items = torch.randn(CEILING_USERS, width), torch.randn(num_items, width)
    square, tall = peak_matrices()
    with torch.no_grad():
        flops = ready_batch(lengths, width, MAX_HISTORY).flops

        def work() -> float:
            started = time.perf_counter()
            bare_product(flops, square, tall)
            for _ in range(0, MEASURED_USERS, CEILING_USERS):
                bare_scores(users, items, TOP)
            return MEASURED_USERS / (time.perf_counter() - started)

        work()
        rate = sorted(work() for _ in range(3))[1]
    torch.set_num_threads(threads)
    return rate


class Memory:
    """Peak resident memory of a process and of all that it starts, sampled by a thread."""

    def __init__(self, pid: int) -> None:
        self.peaks: dict[int, int] = {}
        """Peak bytes by process."""
        self.names: dict[int, str] = {}
        """Last title of each process."""
        self.total = 0
        """Peak of the sum."""
        self._root = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True, name="memory-of-processes")
        self._thread.start()

    def stop(self) -> None:
        """End sampling."""
        self._done.set()
        self._thread.join()

    def by_role(self) -> tuple[list[int], int]:
        """Return the peaks of the workers, the largest first, and the sum of those of Ray's processes."""
        is_worker = {pid: name.startswith("ray::RayTrainWorker") for pid, name in self.names.items()}
        workers = sorted((self.peaks[pid] for pid in self.peaks if is_worker[pid]), reverse=True)
        return workers, sum(self.peaks[p] for p in self.peaks if not is_worker[p] and p != self._root)

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            total = 0
            with suppress(psutil.Error):
                root = psutil.Process(self._root)
                for process in [root, *root.children(recursive=True)]:
                    with suppress(psutil.Error):
                        held = process.memory_info().rss
                        total += held
                        self.peaks[process.pid] = max(self.peaks.get(process.pid, 0), held)
                        self.names[process.pid] = " ".join(process.cmdline()[:1])
            self.total = max(self.total, total)


def read_figures(path: Path) -> list[Figures]:
    """Return the figures of a file in the order of their sizes."""
    if not path.exists():
        return []
    return sorted((Figures(**row) for row in stored_figures(path)["rows"]), key=lambda figures: figures.key)


def add(figures: Figures, path: Path) -> None:
    """Add figures to a file. They replace those of the same sizes."""
    rows = [other for other in read_figures(path) if other.key != figures.key]
    rows = sorted([*rows, figures], key=lambda row: row.key)
    path.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1) + "\n", encoding="utf-8")


def table(rows: list[Figures]) -> str:
    """Return figures as a table in Markdown."""
    lines = [
        [
            f"{row.items:,}",
            f"{row.users:,}",
            f"{row.users_per_second:,.0f}",
            f"{row.ceiling_users_per_second:,.0f}",
            f"{row.users_per_second / row.ceiling_users_per_second:.2f}",
            " and ".join(f"{peak / 1e9:.2f}" for peak in row.worker_peak_bytes) + " GB",
            f"{row.driver_peak_bytes / 1e9:.2f} GB",
            f"{row.total_peak_bytes / 1e9:.2f} GB",
        ]
        for row in rows
    ]
    header = [
        "items",
        "users",
        "users/s",
        "ceiling, users/s",
        "ratio",
        "memory of each worker",
        "command",
        "all processes",
    ]
    return markdown(header, lines)


def _remove(folder: Path) -> None:
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


if __name__ == "__main__":
    main()
