"""Optional parts of an export: the index of the items, the ONNX file, the server of examples/. Skipped without their packages."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shoal
from tests.shoal.exported.test_export import Run, recommender  # noqa: F401 - the fixture
from trainer.export import onnx as export_onnx
from trainer.export.inputs import next_item_inputs
from trainer.export.run_program import load_program

AT = {"at": 1_700_000_000 + 10**6}


def test_the_index_finds_the_best_items(recommender: Run, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("faiss", reason="needs faiss-cpu, of the extra [serve]")
    manifest = shoal.export(recommender.folder, tmp_path / "export", quiet=True)
    assert manifest.index is not None
    assert manifest.index["recall@10"] >= 0.99
    exported = shoal.load_export(tmp_path / "export")
    given: dict[str, Any] = {"user_features": recommender.users, **AT}
    exact = exported.recommend(recommender.events, 5, **given)
    found = exported.recommend(recommender.events, 5, approximate=True, **given)
    assert found.drop_columns("score").equals(exact.drop_columns("score"))


def test_an_index_without_faiss_is_refused(
    recommender: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("trainer.export.index.is_installed", lambda: False)
    with pytest.raises(shoal.UserError, match="needs the package faiss-cpu"):
        shoal.export(recommender.folder, tmp_path / "asked", index=True, quiet=True)
    assert shoal.export(recommender.folder, tmp_path / "default").index is None
    assert "faiss-cpu is not installed" in capsys.readouterr().out


def test_onnx_without_its_packages_is_refused(
    recommender: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export_onnx, "NEEDED", ("onnx_absent", "onnxscript_absent"))
    with pytest.raises(shoal.UserError, match="needs onnx_absent and onnxscript_absent"):
        shoal.export(recommender.folder, tmp_path / "export", onnx=True, quiet=True)


def test_the_onnx_file_equals_the_program(recommender: Run, tmp_path: Path) -> None:  # noqa: F811
    for name in (*export_onnx.NEEDED, "onnxruntime"):
        pytest.importorskip(name, reason=f"needs {name}, of the extra [onnx] or by itself")
    import onnxruntime

    shoal.export(recommender.folder, tmp_path / "export", index=False, onnx=True, quiet=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "export" / "program.onnx"))
    exported: Any = shoal.load_export(tmp_path / "export")
    given = exported._encode(recommender.events, recommender.users, AT["at"])
    run = load_program(tmp_path / "export" / "program.pt2")
    for rows in (np.arange(given.lengths.size), np.asarray([3])):
        arrays = next_item_inputs(exported._form, given.packed, rows, given.lengths[rows])
        expected = run({name: torch.from_numpy(arrays[name]) for name in exported._names}).numpy()
        wanted = [entry.name for entry in session.get_inputs()]
        (actual,) = session.run(None, {name: arrays[name] for name in wanted})
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_the_example_serves_an_export(recommender: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pytest.importorskip("fastapi", reason="needs fastapi, of the extra [serve]")
    testclient = pytest.importorskip("fastapi.testclient", reason="needs httpx")
    shoal.export(recommender.folder, tmp_path / "export", index=False, quiet=True)
    monkeypatch.setenv("EXPORT", str(tmp_path / "export"))
    client = testclient.TestClient(importlib.import_module("examples.serve").app)
    event = {"item_id": 3, "time": 1_700_000_000, "word": [1, 2], "device": "device-1", "price": 0.5}
    answer = client.post("/recommend", json={"users": {"7": [event], "8": []}, "k": 3})
    assert answer.status_code == 200
    assert [len(items) for items in answer.json().values()] == [3, 3]
    assert 3 not in [item["item_id"] for item in answer.json()["7"]]
    assert answer.json()["8"][0]["score"] is None  # popular items
    wrong = client.post("/recommend", json={"users": {"7": [{"item_id": 3}]}})
    assert wrong.status_code == 422
    assert "time" in wrong.text
