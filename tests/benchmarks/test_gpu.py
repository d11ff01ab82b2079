"""The benchmark of GPUs runs at tiny sizes on a CPU, through all of its parts."""

import json
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import gpu


def test_the_smoke_run_measures_every_form_and_step(tmp_path):
    out = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--json", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    figures = json.loads(out.read_text())
    names = {rate["name"] for rate in figures["rates"]}
    assert names == {
        *(f"step, {name}" for name in gpu.ENCODERS),
        *(f"{form}, {length} events" for form in gpu.FORMS for length in gpu.SMOKE.lengths),
    }
    assert figures["left_out"] == []
    assert all(rate["spread"][0] <= rate["seconds"] <= rate["spread"][1] for rate in figures["rates"])
    assert figures["parity"].keys() == gpu.FORMS.keys()
    assert max(figures["parity"].values()) < 1e-4
    assert "% of the peak" in done.stdout


def test_a_window_counts_the_pairs_that_it_shows():
    rate = gpu._form_rate(torch.device("cpu"), gpu.SMOKE, 1.0, "windowed", {"window": 3}, 16)
    pairs = sum(min(event + 1, 3) for event in range(16)) * (gpu.SMOKE.num_events // 16)
    flops = pairs * gpu.HEADS * gpu.WIDTH * 14
    assert rate.teraflops == pytest.approx(flops / rate.seconds / 1e12)


def test_measurements_after_the_deadline_are_named(capsys):
    figures = gpu.run(torch.device("cpu"), gpu.SMOKE, time.monotonic())
    assert figures["rates"] == []
    assert len(figures["left_out"]) == len(gpu.ENCODERS) + len(gpu.FORMS) * len(gpu.SMOKE.lengths)
    assert "left out after 8 minutes" in capsys.readouterr().out
