"""`shoal submit`: the same command as a job on a running Ray cluster. Code and config travel as the job's runtime environment."""

import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.config import Config
from trainer.errors import UserError, first_line
from trainer.logs.columns import SourceName
from trainer.logs.files import absolute, entries_of

PACKAGES = ("cluster", "trainer", "sharding", "models")
POLL_SECONDS = 1.0
AGENT_SECONDS = 60.0
AGENT_HINT = (
    " The head's agent does not run, likely because another Ray session on that machine has its port; start the head with "
    "`ray start --head --dashboard-agent-listen-port=ANOTHER`"
)
ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


def submit(config: Config, dashboard: str, on_log: Callable[[str], None], wait: bool = True) -> tuple[str, int | None]:
    """Submit `shoal run` with this config; follow its log until it ends. Returns (job id, exit code; None if not waited for).

    `dashboard`: address of the cluster's dashboard, such as http://127.0.0.1:8265. Paths in the config must be reachable from
    every node. Raises UserError if the cluster does not answer or refuses.
    """
    client = _connect(dashboard)
    job_id = f"shoal-{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory(prefix="shoal-submit-") as folder:
        staged = Path(folder)
        _stage(config, staged)
        _hand_over(client, job_id, staged, dashboard)
    return (job_id, _follow(client, job_id, on_log)) if wait else (job_id, None)


def _hand_over(client: JobSubmissionClient, job_id: str, staged: Path, dashboard: str) -> None:
    """Submit; a head that has just started takes jobs only once its agent is up, so that refusal is waited out."""
    end = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            client.submit_job(
                submission_id=job_id,
                entrypoint="python -m cluster run config.json",
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
        return JobSubmissionClient(dashboard)
    except AuthenticationError as error:
        raise UserError(
            f"--dashboard {dashboard}: the cluster asks for a token ({first_line(error)}); put the cluster's token "
            "into ~/.ray/auth_token or name its file in RAY_AUTH_TOKEN_PATH. `shoal doctor` looks closer"
        ) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--dashboard {dashboard}: no Ray cluster takes jobs there ({first_line(error)}); "
            "start one with `ray start --head`, or correct the address"
        ) from None


def _stage(config: Config, folder: Path) -> None:
    """Exactly the four packages and the resolved config: its paths lead from any folder, and it joins the cluster that runs it."""
    root = Path(__file__).resolve().parent.parent
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    values = config.model_dump(mode="json")
    values["cluster"]["address"] = "auto"
    values["run"]["dir"] = str(config.run_dir.resolve())
    values["run"]["dataset"] = str(config.dataset_dir.resolve())
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
