"""A log and a config of it, and a run of that config which was submitted to a Ray cluster on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.commands import Submitted, finish, shoal
from tests.end_to_end.ray_head import Head, ray_head
from tests.end_to_end.watched import WAIT_SECONDS
from tests.support.side_by_side import without_cluster
from trainer.data.synthetic.log import generate
from trainer.data.synthetic.world import SyntheticConfig


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder: their commands start Ray. Refuse one that would start a second cluster."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("ray")
    if files := without_cluster(items):
        raise pytest.UsageError(f"{', '.join(files)}: add them to ON_ONE_CLUSTER in tests/support/side_by_side.py")


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("end-to-end")
    world = SyntheticConfig(num_users=240, num_items=200, mean_events_per_user=20.0, users_per_file=120)
    generate(world, folder / "events")
    path = folder / "run.toml"
    path.write_text(
        f"""
        [logs]
        path = "{folder}/events/events-*.parquet"
        [model]
        max_history = 20
        [tables.item]
        dim = 16
        [train]
        epochs = 6
        batch_size = 8
        sample_log = true
        log_every_steps = 1
        [checkpoint]
        every_steps = 25
        """
    )
    return path


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    with ray_head() as head:
        yield head


@pytest.fixture(scope="session")
def submitted(config: Path, head: Head) -> Submitted:
    run_dir = config.parent / "submitted"
    command = ["submit", str(config), "--dashboard", head.dashboard, "--set", f"run.dir={run_dir}"]
    code, said, err = finish(shoal(*command), WAIT_SECONDS)
    assert code == 0, said + err
    code, again, err = finish(shoal(*command, "--set", "train.batch_size=10"))
    assert code == 2, again + err
    return Submitted(run_dir, said, again + err)
