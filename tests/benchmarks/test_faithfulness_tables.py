"""The tables of the page about explanations are those of the stored results."""

import json

import pytest

from benchmarks.faithfulness_tables import ALL_TABLES, PAGE, RESULTS, all_tables, read_results, table_of, with_tables
from trainer.explanation.faithfulness.results import Faithfulness, from_json, to_json


def test_the_page_shows_the_stored_results() -> None:
    results = read_results(RESULTS)
    text = PAGE.read_text(encoding="utf-8")
    assert with_tables(text, results) == text
    assert (RESULTS / ALL_TABLES).read_text(encoding="utf-8") == all_tables(results)


def test_stored_results_are_read_as_values() -> None:
    results = read_results(RESULTS)["movielens1m"]
    for run in results["runs"]:
        result = from_json(Faithfulness, run["faithfulness"])
        assert json.loads(json.dumps(to_json(result))) == run["faithfulness"]
        assert {"attention", "occlusion", "random", "recency", "popularity"} <= set(result.orders)
        assert result.removals == ("shares", "2", "3", "4")


def test_sampled_gradients_or_occlusion_beat_attention_and_chance() -> None:
    """The page says so for every model on MovieLens-1M."""
    for run in read_results(RESULTS)["movielens1m"]["runs"]:
        result = from_json(Faithfulness, run["faithfulness"])
        for metric in ("pos@10", "del", "ins", "cdcg"):
            best = [
                order
                for order in ("ig_sampled", "occlusion")
                if all(
                    (contrast := result.contrast(order, reference, metric)) is not None and contrast.outcome == "better"
                    for reference in ("random", "attention")
                )
            ]
            assert best, (run["run"], metric)


def test_planted_causes_are_found_three_times_as_often_as_by_recency() -> None:
    (run,) = read_results(RESULTS)["synthetic"]["runs"]
    ratios = {one["order"]: one["ratio_to_recency"] for one in run["planted"]}
    assert max(ratios.values()) >= 3.0


def test_unknown_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="no table is called"):
        table_of(["synthetic", "planted", "twice"], read_results(RESULTS))
