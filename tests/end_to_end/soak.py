"""A soak: one training with many random faults. Its end is compared bit for bit with that of an undisturbed one.

    python -m tests.end_to_end.soak --faults 200 --seed 1 --json build/soak.json

With --folder and --minutes it ends after a time, and the same command continues the same training later.

Goodput is the time that computing the steps takes without a fault, divided by the whole time with them. The run is small, so its
goodput is that of faults a few seconds apart: a bound from below, not a forecast.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from tests.end_to_end.commands import finish, shoal
from tests.end_to_end.soak_faults import SoakFault, draw_faults
from tests.end_to_end.test_run import tensor_hashes
from trainer.checkpoint import folder as checkpoint_folder
from trainer.data.synthetic.log import generate
from trainer.data.synthetic.world import SyntheticConfig
from trainer.fault_points import VARIABLE
from trainer.storage.files import write_json_atomically

STEPS_APART = 20
STEPS_PER_EPOCH = 30
MOST_COMMANDS_PER_FAULT = 4  # beyond it the soak has failed
DEADLINE = 900.0  # of one command without an event
GONE_SECONDS = 60.0  # for the processes of a killed driver to end

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
every_steps = 10
keep = 4
on_error = "continue"
[cluster]
num_workers = 2
[cluster.recovery]
heartbeat_seconds = 8.0
failures_per_hour = 100000
same_step_failures = 1000
backoff_seconds = 0.0
"""


@dataclass
class SoakState:
    """Progress of a soak, kept on disk so that a later process continues it."""

    seed: int
    """The seed of the faults."""
    num_faults: int
    """The number of faults in all."""
    seconds_per_step: float = 0.0
    """Seconds of training per step without a fault; 0 until the reference is done."""
    elapsed: float = 0.0
    """Seconds of training with faults."""
    codes: list[int] = field(default_factory=list)
    """The exit codes of the commands."""
    carried_out: list[int] = field(default_factory=list)
    """The steps of the faults of whole commands that were carried out."""


class Soak:
    """One soak in a folder: its config, its run and the reference."""

    def __init__(self, folder: Path, faults: Sequence[SoakFault], state: SoakState) -> None:
        self.folder = folder
        self.faults = faults
        self.steps = faults[-1].step + 2 * STEPS_APART
        self.run_dir = folder / "run"
        self.state = state
        if not (folder / "run.toml").exists():
            self._write_inputs()

    @classmethod
    def open(cls, folder: Path, num_faults: int, seed: int) -> Self:
        """Return the soak of a folder, at its start or where an earlier process left it."""
        folder.mkdir(parents=True, exist_ok=True)
        state = SoakState(seed, num_faults)
        if (folder / "soak-state.json").exists():
            state = SoakState(**json.loads((folder / "soak-state.json").read_text()))
            if (state.seed, state.num_faults) != (seed, num_faults):
                raise ValueError(f"{folder} has a soak of {state.num_faults} faults of seed {state.seed}")
        return cls(folder, draw_faults(num_faults, seed, STEPS_APART), state)

    def keep_state(self) -> None:
        """Write the progress to disk."""
        write_json_atomically(self.folder / "soak-state.json", asdict(self.state))

    def _write_inputs(self) -> None:
        """Write logs, config and faults."""
        folder = self.folder
        world = SyntheticConfig(
            num_users=8 * STEPS_PER_EPOCH, num_items=200, mean_events_per_user=20.0, users_per_file=120
        )
        generate(world, folder / "events")
        injected = [fault for one in self.faults for fault in one.injected]
        (folder / "faults.json").write_text(json.dumps(injected))
        (folder / "run.toml").write_text(CONFIG.format(folder=folder, steps=self.steps))

    def reference(self) -> None:
        """Train without a fault, unless that is done, and note the seconds of training per step."""
        if self.state.seconds_per_step:
            return
        for verb in ("prepare", "train"):
            process = shoal(verb, str(self.folder / "run.toml"), "--set", f"run.dir={self.folder / 'reference'}")
            code, _, err = finish(process, DEADLINE + self.steps)
            if code:
                raise RuntimeError(f"the reference ended with {code}: {err}")
        began, ended = json.loads((self.folder / "reference/attempts.json").read_text())[-1]
        self.state.seconds_per_step = float(ended - began) / self.steps
        self.keep_state()

    def disturbed(self, until: float) -> bool:
        """Train with all faults, and start the command again whenever it ends before the last step.

        Return False if the training was stopped at a time of the monotonic clock, before its end.
        """
        while True:
            events = [one for one in self.faults if one.command and one.step not in self.state.carried_out]
            if len(self.state.codes) > MOST_COMMANDS_PER_FAULT * (len(self.faults) + 1):
                raise RuntimeError(f"the training did not end after {len(self.state.codes)} commands")
            started = time.monotonic()
            with (self.folder / "command.log").open("a") as log:
                process = self._start(log)
                event = self._wait(process, events, until)
            self.state.codes.append(process.returncode)
            if event is not None:
                self.state.carried_out.append(event.step)
                self._damage(event)
            self.state.elapsed += time.monotonic() - started
            if event is None and process.returncode == 0:
                self.keep_state()
                return True
            self._restore_data()
            self.keep_state()
            what = "ended by itself" if event is None else event.kind
            print(f"{time.strftime('%H:%M:%S')} step {self.step_now()}: exit {process.returncode}, {what}", flush=True)
            if time.monotonic() > until:
                return False

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
        """Return the names of faults within ranks, and the steps of faults of whole commands, that did not happen."""
        happened = {path.name.split(".")[2] for path in self.folder.glob("faults.json.*.happened")}
        injected = [fault["name"] for one in self.faults for fault in one.injected if fault["name"] not in happened]
        commands = [one for one in self.faults if one.command and one.step not in self.state.carried_out]
        return [*injected, *(f"{one.kind} at step {one.step}" for one in commands)]

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

    def _wait(self, process: subprocess.Popen[str], events: Sequence[SoakFault], until: float) -> SoakFault | None:
        """Wait for the end of the command, or for the step of an event, which is then carried out and returned.

        At the time `until` the command is asked to stop.
        """
        end = time.monotonic() + DEADLINE
        first, unchanged = self.step_now(), self._log_time()
        while process.poll() is None:
            step = self.step_now()
            # The step of an event may have passed before this command, while an earlier event was carried out.
            due = next((event for event in events if event.step <= step and self._log_time() != unchanged), None)
            if step > first:
                end = max(end, time.monotonic() + DEADLINE / 3)
            if due is not None or time.monotonic() > min(end, until):
                gently = time.monotonic() < end and (due is None or due.command in ("terminate", "truncate data"))
                family = psutil.Process(process.pid).children(recursive=True)
                os.kill(process.pid, signal.SIGTERM if gently else signal.SIGKILL)
                process.wait(DEADLINE)
                _, left = psutil.wait_procs(family, GONE_SECONDS)  # those of a killed driver end by themselves
                if left:
                    raise RuntimeError(f"processes are left: {left}")
                return due
            time.sleep(0.1)
        return None

    def _log_time(self) -> int:
        """Return when the log of the run was last written; 0 without one."""
        path = self.run_dir / "metrics.jsonl"
        return path.stat().st_mtime_ns if path.exists() else 0

    def step_now(self) -> int:
        """Return the newest step in the log of the run."""
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

    def _damage(self, event: SoakFault) -> None:
        kind, draw = event.command, random.Random(f"{self.state.seed} {event.step}")
        if kind in ("flip", "truncate", "remove"):
            committed = checkpoint_folder.committed(self.run_dir / "checkpoints")
            if len(committed) < 2:
                return
            path = draw.choice(sorted(path for path in committed[0].iterdir()))
            content = path.read_bytes()
            place = draw.randrange(len(content))
            if kind == "remove":
                path.unlink()
            elif kind == "truncate":
                path.write_bytes(content[:place])
            else:
                flipped = bytes([content[place] ^ 1 << draw.randrange(8)])
                path.write_bytes(content[:place] + flipped + content[place + 1 :])
        elif kind == "truncate data":
            path = draw.choice(sorted((self.folder / "dataset").glob("**/*.parquet")))
            shutil.copy2(path, self.folder / "intact")
            (self.folder / "intact-name").write_text(str(path))
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)

    def _restore_data(self) -> None:
        """Restore a damaged data file once a command has refused it."""
        name = self.folder / "intact-name"
        if name.exists() and self.state.codes[-1] == 2:
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
    parser.add_argument("--minutes", type=float, help="stop after this time; the same command with --folder continues")
    arguments = parser.parse_args()
    until = math.inf if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(prefix="shoal-soak-") as temporary:
        result = _run(arguments.folder or Path(temporary), arguments.faults, arguments.seed, until)
    print(json.dumps({key: value for key, value in result.items() if key != "faults"}, indent=1))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if result["exact"] and not result["not_happened"] else 1)


def _run(folder: Path, num_faults: int, seed: int, until: float) -> dict[str, Any]:
    soak = Soak.open(folder, num_faults, seed)
    soak.reference()
    if not soak.disturbed(until):
        print(f"stopped at step {soak.step_now():,} of {soak.steps:,}; the same command continues")
        sys.exit(3)
    differences = soak.differences()
    restarts = soak.run_dir / "restarts.jsonl"
    state = soak.state
    return {
        "seed": seed,
        "num_faults": num_faults,
        "exact": not differences,
        "differences": differences,
        "not_happened": soak.not_happened(),
        "steps": soak.steps,
        "elapsed_seconds": state.elapsed,
        "seconds_per_step": state.seconds_per_step,
        "goodput": state.seconds_per_step * soak.steps / state.elapsed,
        "commands": len(state.codes),
        "exit_codes": state.codes,
        "restarts_by_itself": len(restarts.read_text().splitlines()) if restarts.exists() else 0,
        "faults": [fault.values() for fault in soak.faults],
    }


if __name__ == "__main__":
    main()
