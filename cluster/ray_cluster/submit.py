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
from typing import get_args

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.config.run_config import Config
from cluster.errors import Interrupted
from cluster.ray_cluster.token import GET_TOKEN
from trainer.data.logs.columns import SourceName
from trainer.data.logs.files import absolute, entries_of
from trainer.errors import UserError, first_line

PACKAGES = ("cluster", "trainer", "sharding", "models")
POLL_SECONDS = 1.0
AGENT_SECONDS = 60.0
CONNECT_SECONDS = 5.0
AGENT_HINT = (
    " The head's agent does not run, likely because another Ray session on that machine has its port; start the head with "
    "`ray start --head --dashboard-agent-listen-port=ANOTHER`"
)
ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


def submit(
    config: Config,
    dashboard: str,
    on_log: Callable[[str], None],
    wait: bool = True,
    command: Sequence[str] = ("run",),
) -> tuple[str, int | None]:
    """Submit a command with this config as a job, and follow its log until it ends.

    Args:
        config: settings. Their paths must be reachable from every node.
        dashboard: address of the cluster's dashboard, such as http://127.0.0.1:8265.
        on_log: called with each new part of the log.
        wait: whether to follow the log.
        command: name of the command, and its arguments after the config; paths among them must be absolute.

    Returns:
        The id of the job, and its exit code; None if it was not waited for.

    Raises:
        UserError: the cluster does not answer, or refuses the job.
        Interrupted: a signal ended the command before the job has ended. The message says what to do about the job.
    """
    client = _connect(dashboard)
    job_id = f"shoal-{uuid.uuid4().hex[:12]}"
    how = how_to_go_on(config, job_id, dashboard)
    try:
        with tempfile.TemporaryDirectory(prefix="shoal-submit-") as folder:
            staged = Path(folder)
            _stage(config, staged)
            _hand_over(client, job_id, staged, dashboard, shlex.join([command[0], "config.json", *command[1:]]))
        on_log(f"submitted job {job_id}\n{how}\n")
        return (job_id, _follow(client, job_id, on_log)) if wait else (job_id, None)
    except Interrupted as interruption:
        if not _is_known(client, job_id):
            raise Interrupted(
                interruption.number, "interrupted before the job was submitted; run the same command again"
            ) from None
        raise Interrupted(
            interruption.number, f"interrupted; job {job_id} keeps running on the cluster\n{how}"
        ) from None


def how_to_go_on(config: Config, job_id: str, dashboard: str) -> str:
    """Return the commands that follow, look at and stop a job, one a line."""
    # Ray's own commands do not send the token by themselves.
    ray_job = f"{'RAY_AUTH_MODE=token ' if os.environ.get('RAY_AUTH_MODE', '').lower() == 'token' else ''}ray job"
    run_dir = shlex.quote(str(config.run_dir.resolve()))
    return (
        f"  follow it: {ray_job} logs --address {dashboard} --follow {job_id}\n"
        f"  its state: shoal status {run_dir}\n"
        f"  stop it:   {ray_job} stop --address {dashboard} {job_id}"
    )


def _is_known(client: JobSubmissionClient, job_id: str) -> bool:
    """Return whether the cluster has accepted the job."""
    try:
        client.get_job_status(job_id)
    except RuntimeError:
        return False
    return True


def _hand_over(client: JobSubmissionClient, job_id: str, staged: Path, dashboard: str, command: str) -> None:
    """Submit the job of a command line. A head that has just started refuses jobs until its agent is up, so it is asked again."""
    end = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            client.submit_job(
                submission_id=job_id,
                entrypoint=f"python -m cluster.cli {command}",
                runtime_env={"working_dir": str(staged), "env_vars": {"PYTHONUNBUFFERED": "1"}},
            )
            return
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > end:
                busy = "" if "No available agent" not in str(error) else AGENT_HINT
                raise UserError(f"cluster at {dashboard} refused the job: {first_line(error)}{busy}") from None
        time.sleep(POLL_SECONDS)


def _connect(dashboard: str) -> JobSubmissionClient:
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


def _stage(config: Config, folder: Path) -> None:
    """Write the job's working folder: the packages and the resolved config, with absolute paths and its own cluster's address."""
    root = Path(__file__).resolve().parents[2]
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    values = config.model_dump(mode="json")
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


def _follow(client: JobSubmissionClient, job_id: str, on_log: Callable[[str], None]) -> int:
    """Pass on the job's log as it grows; its exit code at the end."""
    shown = 0
    while True:
        status = client.get_job_status(job_id)
        text = client.get_job_logs(job_id)
        if len(text) > shown:
            on_log(text[shown:])
            shown = len(text)
        if status in ENDED:
            break
        time.sleep(POLL_SECONDS)
    code = client.get_job_info(job_id).driver_exit_code
    if code is not None:
        return int(code)
    return 0 if status == JobStatus.SUCCEEDED else 1
