"""A soak: one training with many random faults. Its end is compared bit for bit with that of an undisturbed one.

    python -m tests.end_to_end.soak --faults 200 --seed 1 --json build/soak.json

Goodput is the time that computing the steps takes without a fault, divided by the whole time with them. The run is small, so its
goodput is that of faults a few seconds apart: a bound from below, not a forecast.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.end_to_end.commands import finish, shoal
from tests.end_to_end.soak_faults import SoakFault, draw_faults
from tests.end_to_end.test_run import tensor_hashes
from trainer.checkpoint import folder as checkpoint_folder
from trainer.data.synthetic.log import generate
from trainer.data.synthetic.world import SyntheticConfig
from trainer.fault_points import VARIABLE

STEPS_APART = 40
STEPS_PER_EPOCH = 30
MOST_COMMANDS_PER_FAULT = 4  # beyond it the soak has failed
DEADLINE = 900.0  # of one command without an event

CONFIG = """
[run]
dataset = "{folder}/dataset"
[logs]
path = "{folder}/events/events-*.parquet"
[model]
max_history = 20
[tables.item]
dim = 16
sharding = "row_wise"
[train]
epochs = 100000
max_steps = {steps}
batch_size = 8
evaluate_every_epochs = 5
sample_log = true
log_every_steps = 1
[train.early_stopping]
patience = 100000
[checkpoint]
every_steps = 20
keep = 4
on_error = "continue"
[cluster]
num_workers = 2
[cluster.recovery]
heartbeat_seconds = 15.0
failures_per_hour = 100000
same_step_failures = 1000
backoff_seconds = 0.0
"""


class Soak:
    """One soak in a folder: its config, its run and the reference."""

    def __init__(self, folder: Path, faults: Sequence[SoakFault], seed: int) -> None:
        self.folder = folder
        self.faults = faults
        self.steps = faults[-1].step + 2 * STEPS_APART
        self.run_dir = folder / "run"
        self.num_commands = 0
        self.codes: list[int] = []
        self._draw = random.Random(seed + 1)
        world = SyntheticConfig(
            num_users=8 * STEPS_PER_EPOCH, num_items=200, mean_events_per_user=20.0, users_per_file=120
        )
        generate(world, folder / "events")
        (folder / "run.toml").write_text(CONFIG.format(folder=folder, steps=self.steps))
        injected = [fault for one in faults for fault in one.injected]
        (folder / "faults.json").write_text(json.dumps(injected))

    def reference(self) -> float:
        """Train without a fault, and return the seconds of training per step."""
        for verb in ("prepare", "train"):
            process = shoal(verb, str(self.folder / "run.toml"), "--set", f"run.dir={self.folder / 'reference'}")
            code, _, err = finish(process, DEADLINE + self.steps)
            if code:
                raise RuntimeError(f"the reference ended with {code}: {err}")
        began, ended = json.loads((self.folder / "reference/attempts.json").read_text())[-1]
        return float(ended - began) / self.steps

    def disturbed(self) -> None:
        """Train with all faults, and start the command again whenever it ends before the last step."""
        events = [fault for fault in self.faults if fault.command]
        while True:
            self.num_commands += 1
            if self.num_commands > MOST_COMMANDS_PER_FAULT * (len(self.faults) + 1):
                raise RuntimeError(f"the training did not end after {self.num_commands} commands: {self.codes}")
            with (self.folder / "command.log").open("a") as log:
                process = self._start(log)
                event = self._wait(process, events)
            self.codes.append(process.returncode)
            if event is not None:
                events.remove(event)
                self._damage(event.command)
            elif process.returncode == 0:
                return
            self._restore_data()
            print(f"{time.strftime('%H:%M:%S')} step {self._step()}: exit {process.returncode}, {event}", flush=True)

    def differences(self) -> list[str]:
        """Return what differs from the reference: tensors, the order of trained rows, the result."""
        reference = self.folder / "reference"
        differing = []
        for rank in (0, 1):
            log = f"sample_log/rank-{rank}.jsonl"
            if (reference / log).read_text() != (self.run_dir / log).read_text():
                differing.append(log)
        newest = [checkpoint_folder.committed(path / "checkpoints")[0] for path in (reference, self.run_dir)]
        if newest[0].name != newest[1].name or tensor_hashes(newest[0]) != tensor_hashes(newest[1]):
            differing.append(f"tensors of {newest[1].name}")
        results = [
            json.loads((path / "state.json").read_text())["stages"]["train"]["result"]
            for path in (reference, self.run_dir)
        ]
        if results[0] != results[1]:
            differing.append(f"results: {results}")
        return differing

    def not_happened(self) -> list[str]:
        """Return the names of injected faults that did not happen."""
        happened = {path.name.split(".")[2] for path in self.folder.glob("faults.json.*.happened")}
        return [fault["name"] for one in self.faults for fault in one.injected if fault["name"] not in happened]

    def _start(self, log: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "cluster.cli",
                "train",
                str(self.folder / "run.toml"),
                "--set",
                f"run.dir={self.run_dir}",
            ],
            env={**os.environ, VARIABLE: str(self.folder / "faults.json")},
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )

    def _wait(self, process: subprocess.Popen[str], events: Sequence[SoakFault]) -> SoakFault | None:
        """Wait for the end of the command, or for the step of an event, which is then carried out and returned."""
        end = time.monotonic() + DEADLINE
        first = self._step()
        while process.poll() is None:
            step = self._step()
            due = next((event for event in events if event.step <= step and step > first), None)
            if step > first:
                end = max(end, time.monotonic() + DEADLINE / 3)
            if due is not None or time.monotonic() > end:
                gently = due is not None and due.command in ("terminate", "truncate data")
                os.kill(process.pid, signal.SIGTERM if gently else signal.SIGKILL)
                process.wait(DEADLINE)
                time.sleep(6.0 if not gently else 0.0)  # the workers of a killed driver end by themselves
                return due
            time.sleep(0.1)
        return None

    def _step(self) -> int:
        path = self.run_dir / "metrics.jsonl"
        if not path.exists():
            return 0
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode(errors="ignore").splitlines()
        for line in reversed(lines):
            try:
                return int(json.loads(line)["step"])
            except (ValueError, KeyError):
                continue
        return 0

    def _damage(self, kind: str) -> None:
        if kind in ("flip", "truncate", "remove"):
            committed = checkpoint_folder.committed(self.run_dir / "checkpoints")
            if len(committed) < 2:
                return
            path = self._draw.choice(sorted(path for path in committed[0].iterdir()))
            content = path.read_bytes()
            place = self._draw.randrange(len(content))
            if kind == "remove":
                path.unlink()
            elif kind == "truncate":
                path.write_bytes(content[:place])
            else:
                path.write_bytes(
                    content[:place] + bytes([content[place] ^ 1 << self._draw.randrange(8)]) + content[place + 1 :]
                )
        elif kind == "truncate data":
            path = self._draw.choice(sorted((self.folder / "dataset").glob("**/*.parquet")))
            shutil.copy2(path, self.folder / "intact")
            (self.folder / "intact-name").write_text(str(path))
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)

    def _restore_data(self) -> None:
        """Restore a damaged data file once a command has refused it."""
        name = self.folder / "intact-name"
        if name.exists() and self.codes[-1] == 2:
            shutil.move(self.folder / "intact", name.read_text())
            name.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train with random faults, and compare the end with an undisturbed run."
    )
    parser.add_argument("--faults", type=int, default=200, help="number of faults")
    parser.add_argument("--seed", type=int, default=1, help="seed of the faults")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--folder", type=Path, help="folder of the runs, which is kept; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-soak-") as temporary:
        result = _run(arguments.folder or Path(temporary), arguments.faults, arguments.seed)
    print(json.dumps({key: value for key, value in result.items() if key != "faults"}, indent=1))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if result["exact"] else 1)


def _run(folder: Path, num_faults: int, seed: int) -> dict[str, Any]:
    faults = draw_faults(num_faults, seed, STEPS_APART)
    folder.mkdir(parents=True, exist_ok=True)
    soak = Soak(folder, faults, seed)
    seconds_per_step = soak.reference()
    started = time.monotonic()
    soak.disturbed()
    elapsed = time.monotonic() - started
    differences = soak.differences()
    restarts = soak.run_dir / "restarts.jsonl"
    return {
        "seed": seed,
        "num_faults": num_faults,
        "exact": not differences,
        "differences": differences,
        "not_happened": soak.not_happened(),
        "steps": soak.steps,
        "elapsed_seconds": elapsed,
        "seconds_per_step": seconds_per_step,
        "goodput": seconds_per_step * soak.steps / elapsed,
        "commands": soak.num_commands,
        "exit_codes": soak.codes,
        "restarts_by_itself": len(restarts.read_text().splitlines()) if restarts.exists() else 0,
        "faults": [fault.values() for fault in faults],
    }


if __name__ == "__main__":
    main()
