"""shoal.compare: the comparison as values."""

import re
from pathlib import Path

import numpy as np
import pytest

import shoal
from tests.support.evaluations import write_run


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, list[Path]]:
    generator = np.random.default_rng(0)
    return {
        name: [
            write_run(tmp_path / f"{name}{k}", generator.integers(1, top, 200), seed=k, settings={"x": {"y": top}})
            for k in (1, 2)
        ]
        for name, top in (("old", 60), ("new", 12))
    }


def test_models_with_names_and_seeds(runs: dict[str, list[Path]], tmp_path: Path) -> None:
    comparison = shoal.compare(runs, out=tmp_path / "out")
    (pair,) = comparison.pairs
    assert (pair.reference, pair.other, comparison.num_users) == ("old", "new", 200)
    mrr = pair.differences["mrr"]
    assert mrr.outcome == "better"
    assert mrr.value - mrr.reference == pytest.approx(mrr.difference)
    assert mrr.verdict.startswith("new (2 seeds) is better than old (2 seeds) in mrr by ")
    assert comparison.verdict == pair.verdict
    assert comparison.page == tmp_path / "out" / "compare.html"
    table = comparison.table()
    assert table.column("metric").to_pylist() == [*pair.differences]
    assert table.column("p").to_pylist() == [one.p for one in pair.differences.values()]


def test_the_example_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```py\n(.*?)^```", page, re.M | re.S)
    for seed, name in ((1, "python"), (2, "python-2")):
        write_run(tmp_path / "runs" / name, np.random.default_rng(seed).integers(1, 60, 200), seed=seed)
    monkeypatch.chdir(tmp_path)
    exec(block, {"shoal": shoal})
    assert Path("runs/comparison/compare.html").exists()


def test_a_list_of_folders_writes_nothing_by_default(runs: dict[str, list[Path]], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    comparison = shoal.compare([runs["old"][0], str(runs["new"][0])], metrics=["hr@10"])
    assert comparison.page is None
    assert [*comparison.pairs[0].differences] == ["hr@10"]
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(shoal.UserError, match="no evaluation of the validation split"):
        shoal.compare([runs["old"][0], runs["new"][0]], split="validation")
