"""The driver's summary of a prepared dataset, and when Ray is joined."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.config.run_config import ClusterConfig, Config, load_config
from cluster.data.prepare import prepare
from cluster.driver import driver
from cluster.driver.prepare_stage import prepare_dataset, run_prepare_stage
from cluster.driver.progress import View
from cluster.ray_cluster.session import RaySession
from cluster.workers.group import Workers
from trainer.errors import UserError


def write_inputs(folder: Path) -> Path:
    """Return the config of a log in which a feature repeats a label; the label's name looks like markup."""
    n = range(600)
    columns = {"user_id": [k % 20 for k in n], "item_id": [k % 30 for k in n], "time": list(n)}
    label = {"[bold]": [int(k % 7 == 0) for k in n], "given": [k % 7 for k in n]}
    pq.write_table(pa.table(columns | label), folder / "events.parquet")
    config = folder / "config.toml"
    config.write_text(
        f"""
[run]
dir = "{folder / "run"}"
[logs]
path = "{folder / "events.parquet"}"
labels = ["[bold]"]
history_label = "[bold]"
[logs.features.given]
kind = "categorical"
[split]
kind = "global_time"
validation_time = 400
test_time = 500
"""
    )
    return config


def fake_run_prepare(config: Config, view: View) -> object:
    """Prepare as the driver does, in the Ray session of the tests."""
    config.run_dir.mkdir(exist_ok=True)
    return run_prepare_stage(config, view)


def test_prepare_prints_the_path_and_the_warnings_of_the_card(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "run_prepare", fake_run_prepare)
    done = CliRunner().invoke(app, ["prepare", str(write_inputs(tmp_path)), "--json"])
    assert done.exit_code == 0
    values = json.loads(done.stdout)
    assert values["card"] == str(tmp_path / "run/dataset/card.html")
    assert Path(values["card"]).exists()
    assert f"card: {values['card']}" in done.stderr
    assert "note: problem: Features that reveal the label: given reveals [bold]" in done.stderr
    assert "note: ok" not in done.stderr


def test_a_dataset_that_cannot_be_written_is_used_without_a_card(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write_inputs(tmp_path))
    prepare(config, lambda _: None)
    (config.dataset_dir / "card.json").unlink()
    monkeypatch.setattr("trainer.data.dataset.card.write", refuse)
    screen = io.StringIO()
    with View(Console(file=screen, width=200)) as view:
        run_prepare_stage(config, view)
    assert "dataset " in screen.getvalue()
    assert "card" not in screen.getvalue().replace(str(tmp_path), "")


def refuse(*_: object) -> None:
    raise PermissionError("read only")


def test_a_dataset_that_is_there_is_used_without_joining_ray(tmp_path: Path, ray_session: None) -> None:
    config = load_config(write_inputs(tmp_path))
    joined: list[str] = []
    screen = io.StringIO()
    with View(Console(file=screen, width=200)) as view:
        first = prepare_dataset(config, view, lambda: joined.append("first"))
        again = prepare_dataset(config, view, lambda: joined.append("again"))
    assert joined == ["first"]
    assert again == first


def test_a_wrong_column_is_refused_without_joining_ray(tmp_path: Path) -> None:
    config = load_config(write_inputs(tmp_path), ["logs.user=customer"])
    joined: list[str] = []
    screen = io.StringIO()
    with View(Console(file=screen, width=200)) as view, pytest.raises(UserError, match='no column "customer"'):
        prepare_dataset(config, view, lambda: joined.append("joined"))
    assert joined == []
    assert "prepare: reading the headers of the logs" in screen.getvalue()


def test_ray_is_joined_once_and_workers_are_launched_only_for_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    phases: list[str] = []

    @contextmanager
    def session(config: ClusterConfig, on_phase: Callable[[str], None]) -> Iterator[None]:
        phases.append("opened")
        yield
        phases.append("closed")

    monkeypatch.setattr("cluster.ray_cluster.session.ray_session", session)
    monkeypatch.setattr("cluster.ray_cluster.session.ray.is_initialized", lambda: False)
    with RaySession(ClusterConfig(), phases.append) as idle, Workers(ClusterConfig(), idle.connect, phases.append):
        pass
    assert phases == []
    with RaySession(ClusterConfig(), phases.append) as used:
        used.connect()
        used.connect()
    assert phases == ["Ray: starting on this machine", "opened", "closed"]
