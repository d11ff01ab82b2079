"""`shoal submit`: a command as a job on a running Ray cluster. Code and config travel as the job's runtime environment."""

import json
import os
import shlex
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from cluster.config.run_config import Config
from cluster.driver.existing_run import TRAINS, describe_existing
from cluster.errors import Interrupted
from cluster.ray_cluster.follow import JobEnd, follow
from cluster.ray_cluster.preflight import all_here, missing_files, nodes_of, uses_objects, version_problem
from cluster.ray_cluster.probe import MARK
from cluster.ray_cluster.room import evaluation_problem, resource_problem
from cluster.ray_cluster.token import GET_TOKEN
from trainer.data.logs.columns import SourceName
from trainer.data.logs.files import absolute, entries_of
from trainer.errors import UserError, first_line

PACKAGES = ("cluster", "trainer", "sharding", "models")
POLL_SECONDS = 1.0
AGENT_SECONDS = 60.0
CONNECT_SECONDS = 5.0
# Ray kills a job that does not end this long after `ray job stop`. A training first writes a checkpoint.
STOP_SECONDS = 600
AGENT_HINT = (
    " The head's agent does not run, likely because another Ray session on that machine has its port; start the head with "
    "`ray start --head --dashboard-agent-listen-port=ANOTHER`"
)


def submit(
    config: Config,
    dashboard: str,
    on_log: Callable[[str], None],
    wait: bool = True,
    command: Sequence[str] = ("run",),
    on_note: Callable[[str], None] = lambda text: None,
    installed: bool = False,
) -> tuple[str, int | None]:
    """Submit a command with this config as a job, and follow its log until it ends.

    Args:
        config: settings. Their paths must be reachable from every node.
        dashboard: address of the cluster's dashboard, such as http://127.0.0.1:8265.
        on_log: called with each new part of the log.
        wait: whether to follow the log.
        command: name of the command, and its arguments after the config; paths among them must be absolute.
        on_note: called with a line about the job that is not of its log.
        installed: whether the cluster's image has Shoal installed, so that only the config travels.

    Returns:
        The id of the job, and its exit code; None if it was not waited for.

    Raises:
        UserError: the cluster does not answer, cannot run the job, or refuses it; or the run is finished or in use.
        RunFailedError: the state of the job cannot be read any more.
        Interrupted: a signal ended the command before the job has ended. The message says what to do about the job.
    """
    client = connect_to(dashboard)
    existing = describe_existing(config, command[0])
    job_id = f"shoal-{uuid.uuid4().hex[:12]}"
    how = how_to_go_on(config, job_id, dashboard)
    try:
        with tempfile.TemporaryDirectory(prefix="shoal-submit-") as folder:
            staged = Path(folder)
            _stage(config, staged, () if installed else PACKAGES)
            check_fit(client, config, dashboard, staged, command[0])
            if existing is not None:
                on_note(existing)
            line = shlex.join(["python", "-m", "cluster.cli", command[0], "config.json", *command[1:]])
            metadata = {"run_dir": str(config.run_dir.resolve()), "command": command[0]}
            _hand_over(client, job_id, staged, dashboard, line, metadata)
        on_log(f"submitted job {job_id}\n{how}\n")
        return (job_id, _ended(follow(client, job_id, on_log, on_note), on_note)) if wait else (job_id, None)
    except Interrupted as interruption:
        if not _is_known(client, job_id):
            raise Interrupted(
                interruption.number, "interrupted before the job was submitted; run the same command again"
            ) from None
        raise Interrupted(
            interruption.number, f"interrupted; job {job_id} keeps running on the cluster\n{how}"
        ) from None


def _ended(end: JobEnd, on_note: Callable[[str], None]) -> int:
    """Return the exit code of a job. Pass on the reason of an end that its log does not show."""
    if end.reason is not None:
        on_note(f"job {end.status.lower()}: {end.reason}")
    return end.exit_code


def check_fit(client: JobSubmissionClient, config: Config, dashboard: str, staged: Path, command: str) -> None:
    """Raise UserError, with all that is missing, if the cluster cannot run a command with this config.

    If all nodes are on this machine, its own view of the files is theirs. Otherwise a short job looks from each node; for an
    object storage always, since only the nodes may have the credentials.

    staged: folder with the job's files.
    """
    nodes = nodes_of(dashboard)
    cluster = config.cluster.model_copy(update={"address": "auto"})  # the job joins the cluster that runs it
    resources = resource_problem(cluster, nodes)
    if resources is None and command in TRAINS:
        resources = evaluation_problem(cluster, nodes)
    problems = [problem for problem in (version_problem(client), resources) if problem]
    if not problems:
        sees_the_same = all_here(nodes) and not uses_objects(config)
        problems = missing_files(config, command) if sees_the_same else probe(client, dashboard, staged, command)
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(f"--dashboard {dashboard}: the cluster cannot run this job, and nothing was submitted:{lines}")


def probe(client: JobSubmissionClient, dashboard: str, staged: Path, command: str) -> list[str]:
    """Return what a short job on the cluster reports as missing for a command, on any of its nodes."""
    job_id = f"shoal-probe-{uuid.uuid4().hex[:12]}"
    log: list[str] = []
    line = shlex.join(["python", "-m", "cluster.ray_cluster.probe", "config.json", command])
    _hand_over(client, job_id, staged, dashboard, line, {"command": "probe"})
    end = follow(client, job_id, log.append, lambda text: None)
    lines = "".join(log).splitlines()
    answers = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    if answers:
        problems: list[str] = json.loads(answers[-1])
        return problems
    last = next((line.strip() for line in reversed(lines) if line.strip()), "without a message")
    return [f"a short job that checks its nodes ended with exit code {end.exit_code}: {end.reason or last}"]


def stop_job_of(run_dir: Path, dashboard: str) -> str:
    """Stop the running job of a run folder, and return its id. Raises UserError if the cluster has none."""
    client = connect_to(dashboard)
    name = str(run_dir.resolve())
    jobs = [job for job in client.list_jobs() if (job.metadata or {}).get("run_dir") == name and job.submission_id]
    running = [str(job.submission_id) for job in jobs if not job.status.is_terminal()]
    if not running:
        raise UserError(f"--dashboard {dashboard}: no job of {run_dir} is running there")
    for job_id in running:
        client.stop_job(job_id)
    return ", ".join(running)


def how_to_go_on(config: Config, job_id: str, dashboard: str) -> str:
    """Return the commands that follow, look at and stop a job, one a line."""
    # Ray's own commands do not send the token by themselves.
    ray_job = f"{'RAY_AUTH_MODE=token ' if os.environ.get('RAY_AUTH_MODE', '').lower() == 'token' else ''}ray job"
    run_dir = shlex.quote(str(config.run_dir.resolve()))
    return (
        f"  follow it: {ray_job} logs --address {dashboard} --follow {job_id}\n"
        f"  its state: shoal status {run_dir}\n"
        f"  stop it:   shoal stop {run_dir} --dashboard {dashboard}"
    )


def _is_known(client: JobSubmissionClient, job_id: str) -> bool:
    """Return whether the cluster has accepted the job."""
    try:
        client.get_job_status(job_id)
    except RuntimeError:
        return False
    return True


def _hand_over(
    client: JobSubmissionClient, job_id: str, staged: Path, dashboard: str, line: str, metadata: dict[str, str]
) -> None:
    """Submit the job of a command line. A head that has just started refuses jobs until its agent is up, so it is asked again."""
    end = time.monotonic() + AGENT_SECONDS
    environment = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    while True:
        try:
            client.submit_job(
                submission_id=job_id,
                entrypoint=line,
                runtime_env={"working_dir": str(staged), "env_vars": environment},
                metadata=metadata,
            )
            return
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > end:
                busy = "" if "No available agent" not in str(error) else AGENT_HINT
                raise UserError(f"cluster at {dashboard} refused the job: {first_line(error)}{busy}") from None
        time.sleep(POLL_SECONDS)


def connect_to(dashboard: str) -> JobSubmissionClient:
    """Return a connection to a cluster that takes jobs. Raises UserError that names why there is none."""
    try:
        _check_answer(dashboard)
        return JobSubmissionClient(dashboard)
    except AuthenticationError as error:
        raise UserError(
            f"--dashboard {dashboard}: the cluster asks for a token ({first_line(error.message)}); {GET_TOKEN}"
        ) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--dashboard {dashboard}: no Ray cluster takes jobs there ({first_line(error)}); "
            "start one with `ray start --head`, or correct the address"
        ) from None


def _check_answer(dashboard: str) -> None:
    """Raise ConnectionError if nothing at the address answers a request: Ray's client would wait without a deadline."""
    if not dashboard.startswith(("http://", "https://")):
        return
    try:
        requests.get(f"{dashboard.rstrip('/')}/api/version", timeout=CONNECT_SECONDS)
    except requests.Timeout:
        raise ConnectionError(f"no answer within {CONNECT_SECONDS:g} s") from None
    except requests.RequestException as error:
        raise ConnectionError(f"cannot be reached: {type(error).__name__}") from None


def _stage(config: Config, folder: Path, packages: Sequence[str] = PACKAGES) -> None:
    """Write the job's working folder: the packages and the resolved config, with absolute paths and its own cluster's address."""
    root = Path(__file__).resolve().parents[2]
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    values: dict[str, Any] = config.model_dump(mode="json")
    values["cluster"]["address"] = "auto"
    values["run"]["dir"] = str(config.run_dir.resolve())
    values["run"]["dataset"] = str(config.dataset_dir.resolve())
    values["evaluate"]["candidates"] = config.evaluate.with_absolute_paths().candidates
    for name in get_args(SourceName):
        source = values["logs"] if name == "logs" else values["logs"][name]
        if source is not None:
            source["path"] = [absolute(entry) for entry in entries_of(source["path"])]
    if config.plan.calibration is not None:
        values["plan"]["calibration"] = absolute(config.plan.calibration)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
