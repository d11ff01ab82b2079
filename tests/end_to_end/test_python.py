"""The Python API as a script and a notebook use it: the results and files of the command, nothing printed, exact resumption."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.end_to_end.commands import DEADLINE, ROOT, Submitted, succeed
from trainer.checkpoint.folder import FILE_HASH

pytestmark = pytest.mark.slow

# Without `if __name__ == "__main__"`, and given to Python as text: like the cells of a notebook.
ONCE_AND_AGAIN = """
import json, signal, sys
import shoal

handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
events = []
config = shoal.Config.load(sys.argv[1], {"run.dir": sys.argv[2]})
first = shoal.run(config, quiet=True, on_event=events.append)
again = shoal.run(config, quiet=True, on_event=events.append)
assert again == first
try:
    shoal.train(config.replace({"train.batch_size": 9}), quiet=True)
except shoal.UserError as error:
    refusal = str(error)
assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
run = shoal.Run.open(sys.argv[2])
assert run.evaluations["test"] == first.evaluation
assert run.dataset == first.dataset
assert run.best_checkpoint == first.training.checkpoint
answer = {
    "stages": [[event.stage, event.status] for event in events if isinstance(event, shoal.Stage)],
    "kinds": sorted({type(event).__name__ for event in events}),
    "refusal": refusal,
    "metrics": first.evaluation.values,
    "steps": run.metrics_log("train").column("step").to_pylist(),
    "step": first.training.step,
}
with open(sys.argv[3], "w") as file:
    json.dump(answer, file)
"""

# Ctrl-C comes when training is announced; another thread then runs to the end. All calls use one session of Ray.
STOPPED_AND_RESUMED = """
import os, signal, sys, threading
import shoal
import ray

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)

def interrupt(event):
    if isinstance(event, shoal.Planned):
        os.kill(os.getpid(), signal.SIGINT)

config = shoal.Config.load(sys.argv[1], {"run.dir": sys.argv[2]})
shoal.prepare(config, quiet=True)
try:
    shoal.train(config, quiet=True, on_event=interrupt)
except shoal.StoppedError as error:
    print(error)
print(shoal.Run.open(sys.argv[2]).stages["train"])
results = []
thread = threading.Thread(target=lambda: results.append(shoal.run(config, quiet=True)))
thread.start()
thread.join()
print(results[0].training.reason)
print(shoal.evaluate(config, quiet=True).report.exists())
print(ray.is_initialized())
"""


@dataclass(frozen=True)
class Ended:
    """A Python program that has ended."""

    code: int
    out: str
    err: str


def python(program: str, *arguments: str | Path, here: Path = ROOT) -> Ended:
    """Run a program that is given as text, with only this project to import."""
    done = subprocess.run(
        [sys.executable, "-", *map(str, arguments)],
        input=program,
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3 * DEADLINE,  # a program starts Ray up to four times
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def test_the_api_does_what_the_command_does(config: Path, submitted: Submitted) -> None:
    run_dir, answer_file = config.parent / "by-api", config.parent / "answer.json"
    ended = python(ONCE_AND_AGAIN, config, run_dir, answer_file)
    assert ended == Ended(0, "", "")  # quiet prints nothing
    answer = json.loads(answer_file.read_text())
    folder = submitted.run_dir
    assert answer["metrics"] == json.loads((folder / "evaluation/test/metrics.json").read_text())
    assert answer["step"] == json.loads((folder / "state.json").read_text())["stages"]["train"]["result"]["step"]
    assert answer["steps"] == [*range(1, answer["step"] + 1)]
    assert tensors(run_dir) == tensors(folder)
    assert files(run_dir) == files(folder)
    for name in ("metrics.json", "per_user.parquet"):
        assert (run_dir / "evaluation/test" / name).read_bytes() == (folder / "evaluation/test" / name).read_bytes()
    started = [[stage, status] for stage in ("prepare", "train", "evaluate/test") for status in ("started", "done")]
    again = [["prepare", "started"], ["prepare", "done"], ["train", "done before"], ["evaluate/test", "done before"]]
    assert answer["stages"] == [*started, *again]
    assert {"CheckpointSaved", "Message", "Planned", "Progress", "TrainingStep"} <= {*answer["kinds"]}
    assert "train.batch_size" in answer["refusal"]


def files(run_dir: Path) -> set[str]:
    """Return the names of all files of a run, without what names a process or a moment."""
    names = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    return {re.sub(r"events\.out\.tfevents\..*", "events", name) for name in names}


def tensors(run_dir: Path) -> dict[str, Any]:
    """Return the hashes of the tensors of all checkpoints: their files but .metadata, which names the folder it was written to."""
    manifests = {path.parent.name: json.loads(path.read_text()) for path in run_dir.glob("checkpoints/*/manifest.json")}
    assert len(manifests) == 2
    return {
        name: {file: entry[FILE_HASH] for file, entry in manifest["files"].items() if file.endswith(".distcp")}
        for name, manifest in manifests.items()
    }


def test_ctrl_c_stops_with_a_checkpoint_and_a_thread_resumes(config: Path, submitted: Submitted) -> None:
    run_dir = config.parent / "stopped"
    ended = python(STOPPED_AND_RESUMED, config, run_dir)
    assert ended.code == 0, ended.err
    message, *rest = ended.out.splitlines()
    assert re.match(r"stopped at step \d+, with a checkpoint", message)
    assert rest == ["stopped", "finished", "True", "True"]
    name = "evaluation/test/per_user.parquet"
    assert pq.read_table(run_dir / name).equals(pq.read_table(submitted.run_dir / name))


def test_the_example_in_the_docs_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    succeed("synth", str(tmp_path / "logs"), *re.search(r"`shoal synth logs ([^`]*)`", page)[1].split())  # type: ignore[index]
    ended = python("\n".join(re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)), here=tmp_path)
    assert ended.code == 0, ended.out + ended.err
    ndcg = re.search(r"^ndcg@10 (\d\.\d+)", ended.out, re.M)
    assert ndcg is not None
    assert 0.0 < float(ndcg[1]) < 1.0
    assert "train: started\n" in ended.out
    assert "no such checkpoint" in ended.out
