"""Following a job: its log once and whole, through lost streams and silent clusters, until a final state is read."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from cluster.errors import RunFailedError
from cluster.ray_cluster import follow as module
from cluster.ray_cluster.follow import end_of, follow

LOG = "first\nsecond\nthird\nlast\n"


class FakeClient:
    """A job with a log. Each stream yields the log from its beginning and ends after some characters, as if it was lost.

    Args:
        streams: characters that each stream yields before it is lost; further streams wait.
        infos: answers to questions for the state, the last one repeated; an exception is raised.
    """

    def __init__(self, streams: list[int], infos: list[Any], has_log: bool = True) -> None:
        self._streams = list(streams)
        self._infos = list(infos)
        self._has_log = has_log
        self.num_streams = 0

    def get_job_info(self, job_id: str) -> Any:
        info = self._infos.pop(0) if len(self._infos) > 1 else self._infos[0]
        if isinstance(info, Exception):
            raise info
        return info

    def get_job_logs(self, job_id: str) -> str:
        if not self._has_log:
            raise RuntimeError("Request failed with status code 500: the node is gone")
        return LOG

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self.num_streams += 1
        if not self._streams:
            return
        length = self._streams.pop(0)
        for start in range(0, length, 4):
            yield LOG[start : min(start + 4, length)]
        raise RuntimeError("WebSocket connection closed unexpectedly")


def info(status: JobStatus, exit_code: int | None = None, message: str = "", error_type: str | None = None) -> Any:
    return SimpleNamespace(status=status, driver_exit_code=exit_code, message=message, error_type=error_type)


RUNNING = info(JobStatus.RUNNING)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(module, "REOPEN_SECONDS", 0.01)


def followed(client: Any) -> tuple[int, str, list[str]]:
    shown: list[str] = []
    notes: list[str] = []
    end = follow(client, "shoal-1", shown.append, notes.append)
    return end.exit_code, "".join(shown), notes


def test_a_lost_stream_is_opened_again_and_nothing_is_shown_twice() -> None:
    client = FakeClient([9, 5, 14], [RUNNING] * 6 + [info(JobStatus.SUCCEEDED, 0)])
    assert followed(client) == (0, LOG, [])
    assert client.num_streams >= 3


def test_the_end_of_a_stream_says_nothing_about_the_job() -> None:
    client = FakeClient([len(LOG)], [RUNNING] * 5 + [info(JobStatus.FAILED, 3)])
    assert followed(client) == (3, LOG, [])


def test_a_node_that_is_gone_has_taken_the_rest_of_the_log_along() -> None:
    client = FakeClient([9], [RUNNING, RUNNING, info(JobStatus.FAILED, None, "node died")], has_log=False)
    code, shown, _ = followed(client)
    assert (code, shown) == (1, LOG[:9])


def test_a_silent_cluster_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    silent: list[Any] = [ConnectionError("refused"), RuntimeError("Request failed with status code 503: busy")]
    code, shown, notes = followed(FakeClient([4], [RUNNING, *silent, RUNNING, info(JobStatus.SUCCEEDED, 0)]))
    assert (code, shown) == (0, LOG)
    assert [note.split(";")[0] for note in notes] == [
        "the cluster does not answer (refused)",
        "the cluster answers again",
    ]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("Request failed with status code 404: Job shoal-1 does not exist"),
            "no longer knows job shoal-1",
        ),
        (ConnectionError("refused"), "has not answered for"),
    ],
)
def test_a_state_that_cannot_be_read_is_no_success(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    monkeypatch.setattr(module, "LOST_SECONDS", 0.1)
    with pytest.raises(RunFailedError, match=message):
        followed(FakeClient([], [RUNNING, error]))


def test_a_job_that_does_not_begin_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PENDING_SECONDS", 0.0)
    pending = info(JobStatus.PENDING, message="Job has not started yet.")
    _, _, notes = followed(FakeClient([], [pending, info(JobStatus.SUCCEEDED, 0)]))
    assert notes == ["the job has not begun yet: Job has not started yet."]


ENDS: list[tuple[JobStatus, int | None, str | None, int]] = [
    (JobStatus.SUCCEEDED, 0, None, 0),
    (JobStatus.SUCCEEDED, None, None, 0),
    (JobStatus.FAILED, 2, "JOB_ENTRYPOINT_COMMAND_ERROR", 2),
    (JobStatus.FAILED, -9, "JOB_ENTRYPOINT_COMMAND_ERROR", 137),
    (JobStatus.FAILED, None, "JOB_SUPERVISOR_ACTOR_DIED", 1),
    (JobStatus.FAILED, None, "RUNTIME_ENV_SETUP_FAILURE", 2),
    (JobStatus.STOPPED, None, None, 1),
    (JobStatus.STOPPED, 0, None, 1),
    (JobStatus.STOPPED, 143, None, 143),
]


@pytest.mark.parametrize(("status", "exit_code", "error_type", "expected"), ENDS)
def test_every_final_state_has_an_exit_code(
    status: JobStatus, exit_code: int | None, error_type: str | None, expected: int
) -> None:
    assert end_of(info(status, exit_code, "why", error_type)).exit_code == expected


def test_a_failure_of_the_runtime_environment_is_shown() -> None:
    end = end_of(info(JobStatus.FAILED, None, "No space left", "RUNTIME_ENV_SETUP_FAILURE"))
    assert end.reason == "the runtime environment of the job could not be set up: No space left"
