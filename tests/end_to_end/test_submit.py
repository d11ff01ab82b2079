"""`shoal submit` against a real Ray head on this machine: the log is followed and the exit code comes back."""

import json

from tests.end_to_end.commands import Submitted, refused
from tests.end_to_end.ray_head import free_port


def test_a_job_runs_and_its_exit_code_comes_back(submitted: Submitted) -> None:
    assert "popularity" in submitted.said  # the job's own table, from its log
    metrics = json.loads((submitted.run_dir / "evaluation/test/metrics.json").read_text())
    assert metrics["num_users"] == 240
    assert "train.batch_size: was 8, is 10" in submitted.again


def test_no_cluster_is_one_message(tmp_path):
    config = tmp_path / "job.toml"
    config.write_text('[logs]\npath = "x"\n')
    message = refused("submit", str(config), "--dashboard", f"http://127.0.0.1:{free_port()}")
    assert "no Ray cluster takes jobs there" in message
