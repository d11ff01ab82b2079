"""Tables of the stored figures of `python -m benchmarks`."""

from pathlib import Path

from benchmarks import bench_page

ROOT = Path(__file__).parents[2]


def test_the_page_of_results_shows_the_stored_figures() -> None:
    text = (ROOT / bench_page.PAGE).read_text(encoding="utf-8")
    assert bench_page.with_tables(text, ROOT / bench_page.FOLDER) == text


def test_look_ups_are_paired_with_both_other_tables() -> None:
    ratios = {"ratio_median": 0.5, "ratio_min": 0.25, "ratio_max": 1.0}
    name = "look up and update, 10,000,000 rows, Zipf, 2 workers"
    fbgemm = {"name": name, "ceiling_name": "bare fbgemm", "ours": [1e6, 3e6, 2e6], "ceiling": [4e6], **ratios}
    other = {"name": "sent in a step", "ceiling_name": "the minimum", "ours": [1.0], "ceiling": [1.0], **ratios}
    table = bench_page.look_ups([fbgemm, {**fbgemm, "ceiling_name": "torch.nn.Embedding", "ceiling": [8e6]}, other])
    assert table.splitlines()[2:] == [
        "| 2 | 10^7, Zipf | look up and update | 2 | 4 | 0.50 (0.25 - 1.00) | 8 | 0.50 (0.25 - 1.00) |"
    ]
