"""compare.html and compare.json: valid, self-contained, escaped, and with the figures and verdicts of the comparison."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.evaluations import write_ranking_run, write_run
from tests.support.html_page import Page, assert_loads_nothing
from trainer.comparison.comparison import Comparison, compare
from trainer.comparison.outputs import default_folder, values_of, write
from trainer.comparison.report import render
from trainer.comparison.verdicts import statement, summary
from trainer.errors import UserError

NASTY = '<script>alert("x")</script>'


def ranks_of(seed: int, shift: float = 0.0) -> np.ndarray:
    own = np.random.default_rng(seed).normal(2.0 - shift, 1.5, 300)
    return np.maximum(1, np.exp(np.clip(own, 0.0, 6.0)).astype(np.int64))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Return a comparison of a model, a clearly better one, and one with names that are not harmless."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_run(folder / "old", ranks_of(1), columns={NASTY: ["a", "b", NASTY] * 100})]
    runs.append(write_run(folder / "new", ranks_of(2, shift=2.0), settings={"train": {"learning_rate": 0.2}}))
    nasty = write_run(folder / "c", ranks_of(3), settings={"logs": {"path": NASTY}})
    return compare([*runs, (NASTY, nasty)], num_resamples=200)


@pytest.fixture(scope="module")
def page(comparison: Comparison) -> str:
    return render(comparison)


def test_the_page_is_whole_and_loads_nothing(page: str) -> None:
    assert_loads_nothing(page)
    assert page.startswith("<!doctype html>")
    assert Page(page).open == []


def test_names_are_escaped(page: str) -> None:
    assert "<script" not in page
    assert Page(page).text.count(NASTY) >= 5  # the side, its setting, and a column of slices


def test_the_page_fits_small_screens_and_has_a_dark_scheme(page: str) -> None:
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in Page(page).tags
    assert "prefers-color-scheme:dark" in page
    assert "@media print" in page


def test_the_page_holds_verdicts_figures_and_costs(comparison: Comparison, page: str) -> None:
    text = Page(page).text
    pair = comparison.pairs[0]
    assert summary(pair) == "Compared with old, new is better in all 3 metrics."
    assert summary(pair) in text
    for one in pair.differences:
        assert f"{one.difference:+.4f}" in text
        assert f"{one.reference:.4f}" in text
        assert statement(one, "old", "new") in text
    assert "train.learning_rate" in text
    assert "1 min 30 s, 2 CPU workers" in text
    assert "do not include the spread over training seeds" in text
    assert "recall@10 = hr@10" in text
    assert "coverage@10" in text
    assert Page(page).names.count("svg") == 6  # metrics and slices of three pairs


def test_a_sentence_has_the_direction_the_interval_and_the_share(comparison: Comparison) -> None:
    (mrr,) = [one for one in comparison.pairs[0].differences if one.metric == "mrr"]
    low, high = mrr.interval or (0.0, 0.0)
    figures = f"{mrr.difference:.4f} [{low:.4f}, {high:.4f}] ({100 * mrr.relative:+.1f} %)"
    assert statement(mrr, "old", "new") == f"new is better than old in mrr by {figures}, p < 0.0001."
    (back,) = [one for one in comparison.pairs[2].differences if one.metric == "mrr"]
    assert statement(back, "new", "c").startswith(
        f"c is worse than new in mrr by {-back.difference:.4f} [{-back.interval[1]:.4f}, "
    )
    (none,) = [one for one in comparison.pairs[1].differences if one.metric == "mrr"]
    assert statement(none, "old", "c").startswith("No difference found in mrr: ")
    assert statement(none, "old", "c").endswith("would be found in 80 % of cases.")
    assert summary(comparison.pairs[1]) == f"No difference found between {NASTY} and old in any of 3 metrics."


def test_the_files_hold_everything_as_plain_values(comparison: Comparison, tmp_path: Path) -> None:
    page = write(comparison, tmp_path / "out" / "deep")
    values = json.loads((page.parent / "compare.json").read_text())
    assert values == json.loads(json.dumps(values_of(comparison)))
    assert [side["name"] for side in values["sides"]] == ["old", "new", NASTY]
    assert values["sides"][0]["runs"][0]["cost"]["seconds"] == 90.0
    one = values["pairs"][0]["metrics"][2]
    assert (one["metric"], one["outcome"], one["users"]["equal"]) == (
        "mrr",
        "better",
        comparison.pairs[0].differences[2].users.equal,
    )
    assert one["p_corrected"] >= one["p"]
    assert {part["slice"] for part in values["pairs"][0]["slices"]} == {"history_length", "popularity_place", NASTY}
    assert values["method"]["num_tests"] == 9
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write(comparison, tmp_path / "file" / "below")


def test_the_default_folder_is_next_to_the_second_run(comparison: Comparison, tmp_path: Path) -> None:
    second = comparison.sides[1].evaluations[0].run_dir
    assert second is not None
    assert default_folder(comparison).parent == second.parent
    assert default_folder(comparison).name.startswith("compare-old-new-")
    runs = [
        write_run(tmp_path / name, ranks_of(k), split="validation", settings={"x": {"y": k}})
        for k, name in enumerate("ab")
    ]
    of_validation = compare(runs, "validation", num_resamples=10)
    assert default_folder(of_validation).name == "compare-a-b-validation"
    long = compare([("n" * 90, runs[0]), ("m" * 90, runs[1])], "validation", num_resamples=10)
    assert len(default_folder(long).name) <= 80


def test_the_page_of_ranking_models(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    user, positive = np.repeat(np.arange(50), 8), generator.random(400) < 0.4
    runs = [
        write_ranking_run(
            tmp_path / name, user, positive + generator.normal(0, 2, 400), positive, settings={"x": {"y": k}}
        )
        for k, name in enumerate("ab")
    ]
    page = render(compare(runs, num_resamples=100))
    assert_loads_nothing(page)
    assert Page(page).open == []
    assert "auc/click" in Page(page).text
    assert "training impressions of the item" in Page(page).text
