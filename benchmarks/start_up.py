"""Time from a command to its first training step, by cause, compared with Ray alone: `python -m benchmarks.start_up --json FILE`.

Both sides are fresh processes that take turns on a small prepared dataset. Ray's part is a program that starts Ray on this machine
and runs a function in two workers of Ray Train, which import torch and add a number over both: nothing of it is Shoal's. The
imports of TorchRec and fbgemm, which each worker needs as well, are timed in a process of their own.

`--page FILE` writes the table into a page.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown, measure_or_show
from trainer.data.synthetic.log import generate
from trainer.data.synthetic.world import SyntheticConfig

ROOT = Path(__file__).parents[1]
MARK = "start up"
WORKERS = 2
CAUSES = {
    "command": "start of Python, the imports of the command, its config",
    "ray": "start of Ray on this machine",
    "workers": "launch of the workers, and their imports",
    "model": "model, sharded tables and data, up to the end of the first step",
}
TORCHREC = "of the workers' imports: TorchRec and fbgemm, without torch"

CONFIG = """
[logs]
path = "{folder}/events/events-*.parquet"
[model]
max_history = 20
[tables.item]
dim = 16
[train]
epochs = 1
max_steps = 30
batch_size = 8
log_every_steps = 1
[cluster]
num_workers = {workers}
"""

# Each program prints a line of JSON: seconds since 1970 by event.
SHOAL = """
import json, sys, threading, time
from pathlib import Path
import shoal

moments = {}
log = Path(sys.argv[2], "metrics.jsonl")

def wait_for_the_first_step():
    while not log.exists() or '"kind": "train"' not in log.read_text():
        time.sleep(0.05)
    moments["model"] = time.time()

def note(event):
    if isinstance(event, shoal.Message) and event.text.startswith("Ray:"):
        moments.setdefault("command", time.time())
    if isinstance(event, shoal.Message) and event.text.startswith("workers:"):
        moments.setdefault("ray", time.time())
    if isinstance(event, shoal.Message) and event.text.startswith("train: building"):
        moments.setdefault("workers", time.time())

config = shoal.Config.load(sys.argv[1], {"run.dir": sys.argv[2]})
waiting = threading.Thread(target=wait_for_the_first_step)
waiting.start()
shoal.train(config, quiet=True, on_event=note)
waiting.join()
print(json.dumps(moments))
"""

RAY = """
import json, logging, sys, time
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def add():
    import time, torch
    import torch.distributed as dist
    dist.all_reduce(torch.ones(1))
    if dist.get_rank() == 0:
        with open(sys_argument, "w") as file:
            file.write(str(time.time()))

sys_argument = sys.argv[1] + "/moment"
moments = {"command": time.time()}
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
moments["ray"] = time.time()
trainer = TorchTrainer(add, scaling_config=ScalingConfig(num_workers=2), run_config=RunConfig(storage_path=sys.argv[1]))
trainer.fit()
moments["workers"] = float(open(sys_argument).read())
print(json.dumps(moments))
"""

IMPORTS = """
import json, time
import torch
started = time.perf_counter()
import torchrec
print(json.dumps(time.perf_counter() - started))
"""


def main() -> None:
    """Measure, or write a table of stored figures into a page."""
    measure_or_show("Measure the start of a training, by cause.", MARK, measure, table)


def measure(folder: Path, turns: int) -> dict[str, Any]:
    """Return the seconds of each cause in each turn: of Shoal, of Ray alone, and of the imports of TorchRec."""
    world = SyntheticConfig(num_users=240, num_items=200, mean_events_per_user=20.0, users_per_file=120)
    generate(world, folder / "events")
    config = folder / "run.toml"
    config.write_text(CONFIG.format(folder=folder, workers=WORKERS))
    dataset = {"run.dataset": str(folder / "dataset")}
    config.write_text(config.read_text() + f'[run]\ndataset = "{dataset["run.dataset"]}"\n')
    _answer(
        "import json, sys, shoal; shoal.prepare(shoal.Config.load(sys.argv[1], {'run.dir': sys.argv[2]}), quiet=True); print(0)",
        str(config),
        str(folder / "prepared"),
    )
    results: dict[str, list[Any]] = {"shoal": [], "ray": [], "torchrec": []}
    for turn in range(turns + 1):
        shoal = _seconds(SHOAL, str(config), str(folder / f"run-{turn}"))
        ray = _seconds(RAY, str(folder))
        torchrec = _answer(IMPORTS)
        if turn:  # the first turn compiles modules and fills the cache of files
            results["shoal"].append(shoal)
            results["ray"].append(ray)
            results["torchrec"].append(torchrec)
    return {"workers": WORKERS, **results}


def _seconds(program: str, *arguments: str) -> dict[str, float]:
    """Return the seconds of each cause of a start, in order."""
    before = time.time()
    causes = {}
    for name, moment in _answer(program, *arguments).items():
        causes[name] = moment - before
        before = moment
    return causes


def _answer(program: str, *arguments: str) -> Any:
    """Return what a program prints as its last line."""
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    return json.loads(ended.stdout.splitlines()[-1])


def table(results: dict[str, Any]) -> str:
    """Return the medians by cause, and the whole, of Shoal and of Ray alone."""
    ours, floor = results["shoal"], results["ray"]
    rows = [
        [cause, _text([turn[name] for turn in ours]), _text([turn[name] for turn in floor if name in turn])]
        for name, cause in CAUSES.items()
    ]
    rows.append([TORCHREC, _text(results["torchrec"]), "-"])
    whole = [sum(turn.values()) for turn in ours]
    bare = [sum(turn.values()) for turn in floor]
    rows.append(["all, to the end of the first step", _text(whole), _text(bare)])
    rows.append(["difference, turn by turn", _text([a - b for a, b in zip(whole, bare, strict=True)]), "-"])
    return markdown(["part of the start", "Shoal, s", "Ray alone, s"], rows)


def _text(seconds: Sequence[float]) -> str:
    """Return the median with the spread."""
    if not seconds:
        return "-"
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} - {max(seconds):.1f})"


if __name__ == "__main__":
    main()
