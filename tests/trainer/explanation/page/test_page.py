"""The page of explanations: valid, self-contained and escaped, and with the reasons, the change and the heads in words."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.html_page import Page, assert_loads_nothing
from trainer.explanation import methods
from trainer.explanation.aggregates.groups import hour_codes, hour_grouping, recency_codes, recency_grouping
from trainer.explanation.aggregates.sums import attention_sums
from trainer.explanation.attribution import MapName
from trainer.explanation.command.folder import EVENTS, FORMAT_VERSION, HEADS, SETS, ExplanationsManifest
from trainer.explanation.command.request import METHODS
from trainer.explanation.command.selection import select
from trainer.explanation.faithfulness.results import Contrast, Faithfulness, Measured
from trainer.explanation.page import render as rendering
from trainer.explanation.page.trust import not_measured, trust_of
from trainer.explanation.page.users import shown_users

NASTY = '<script>alert("x")</script>'
DAY = 86_400


def folder_of(folder: Path) -> Path:
    """Write the tables of two users with four events each, of whom one has names that are not harmless."""
    events: list[dict[str, Any]] = []
    heads: list[dict[str, Any]] = []
    sets: list[dict[str, Any]] = []
    for user in ("ann", NASTY):
        question = {"user_id": user, "item_id": "best", "rank": 1}
        for method, values in (("occlusion", [0.1, -0.2, 0.0, 0.3]), ("attention", [0.1, 0.2, 0.3, 0.4])):
            for place, value in enumerate(values):
                item = NASTY if place == 3 else f"item {place}"
                row = {"score": 2.0, "method": method, "position": place + 5, "event_item_id": item}
                events.append({**question, **row, "time": 20_000 * DAY + place, "value": value})
        heads += [{**question, "layer": "block 1", "head": head, "effect": 0.5 - head} for head in (1, 2)]
        answer = {"is_changed": True, "is_smallest": True, "positions": [8], "event_item_ids": [NASTY]}
        sets.append({**question, **answer, "new_item_id": "other", "most_removed": 6})
    for name, rows in ((EVENTS, events), (HEADS, heads), (SETS, sets)):
        (folder / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / name / "part-00000.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("explained") / "out")


JOB: Any = SimpleNamespace(
    run_dir=Path("run"), dataset_dir=Path("none"), config=SimpleNamespace(logs=SimpleNamespace(items=None))
)
MANIFEST: Any = SimpleNamespace(
    features=(), source={"time": {"kind": "integer", "first": 20_000 * DAY, "last": 20_001 * DAY}}
)


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    described = ExplanationsManifest(
        format_version=FORMAT_VERSION,
        inputs="",
        task="next_item",
        checkpoint="step_000000004",
        dataset="",
        options={"shown": 5, "removal": "deleted", "filter_viewed": None},
        methods=["occlusion", "attention"],
        why_method="It is the default method.",
        at=None,
        num_users=2,
        num_without=1,
        num_questions=2,
        num_rows=16,
        seconds=3.0,
        num_workers=2,
        files={},
    )
    offsets = np.asarray([0, 4, 8])
    codes = {
        "recency": (recency_codes(offsets), len(recency_grouping().labels)),
        "hour": (hour_codes(np.arange(8) * 3_600, 1), 24),
    }
    maps = [MapName("block 1", head, "weights") for head in range(2)]
    sums = attention_sums(maps, np.random.default_rng(1).random((2, 8)), offsets, codes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "model_text", lambda job: "sasrec encoder")
        return rendering.render(
            JOB, MANIFEST, folder, described, not_measured(), sums, [recency_grouping(), hour_grouping()]
        )


def test_the_page_is_whole_and_loads_nothing(page: str) -> None:
    assert_loads_nothing(page)
    parsed = Page(page)
    assert page.startswith("<!doctype html>")
    assert parsed.open == []
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in parsed.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert len(attributes["aria-label"]) > 40
        if tag == "ol" and attributes.get("class") == "strip":
            assert attributes["aria-label"].startswith("Values of 4 events by ")


def test_names_are_escaped(page: str) -> None:
    assert "<script" not in page
    assert Page(page).text.count(NASTY) >= 4  # the user, an event of the strip, a reason, and a set


def test_the_page_fits_small_screens_and_has_a_dark_scheme(page: str) -> None:
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in Page(page).tags
    assert "prefers-color-scheme:dark" in page
    assert "@media print" in page


def test_the_page_says_in_words_what_the_tables_hold(page: str) -> None:
    text = " ".join(Page(page).text.split())
    assert "It has not been measured how faithful these explanations are for this model." in text
    assert "75 % of what speaks for it" in text  # 0.3 of 0.1 + 0.3
    assert "the newest event, 2024-10-04 00:00 UTC" in text
    assert "Speaks most against it: item 1 , 2 events earlier" in text
    assert "Without this event, the best item would be another one. No smaller set does this." in text
    assert "Then the best item is other" in text
    assert "block 1, head 2 (-1.500, -75 % of the score)" in text
    assert "Where attention goes" in text
    assert "2 of 2 users" in text
    assert (
        "the other events close the gap and keep their times. Its item stays a viewed item, which is not recommended."
        in text
    )


def test_users_are_spread_evenly(tmp_path: Path) -> None:
    (tmp_path / EVENTS).mkdir()
    rows = [
        {
            "user_id": user,
            "item_id": 1,
            "rank": None,
            "score": 1.0,
            "method": "occlusion",
            "position": 1,
            "event_item_id": None,
            "time": None,
            "value": 0.0,
        }
        for user in range(9)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / EVENTS / "part-00000.parquet")
    users = shown_users(JOB, MANIFEST, tmp_path, 3, False)
    assert [user.name for user in users] == ["0", "4", "8"]
    (one,) = users[0].items
    assert one.reasons == ()
    assert one.change is None
    assert one.events[0].item.title == "an unknown item"


def test_trust_needs_a_measured_difference() -> None:
    def measured(outcome: Any, number: int) -> Faithfulness:
        orders = ("occlusion", "random", "recency", "popularity")
        values = [Measured(order, "del", "shares", 0.3, (0.2, 0.4)) for order in orders]
        contrasts = [
            Contrast("occlusion", name, "del", "shares", -0.1, (-0.2, 0.0), 0.01, 0.01, outcome) for name in orders[1:]
        ]
        return Faithfulness(
            "model", "deleted", "Deleted.", "The best.", number, 0, 20.0, 0, tuple(values), tuple(contrasts)
        )

    better = trust_of(measured("better", 500), "occlusion")
    assert (better.level, better.title) == ("faithful", "These explanations can be trusted for this model.")
    assert not any("few" in text for text in better.sentences)
    assert better.rows[0] == ("occlusion", "0.300 (0.200 to 0.400)")
    unclear = trust_of(measured("none", 20), "occlusion")
    assert unclear.level == "not shown"
    assert "20 users are few" in unclear.sentences[-1]
    assert trust_of(measured("worse", 500), "occlusion").level == "not"


def test_the_recommended_method_is_the_most_faithful_one() -> None:
    def measured(orders: tuple[str, ...], best: str) -> Faithfulness:
        values = [Measured(name, "del", "shares", 0.1 if name == best else 0.3, (0.0, 1.0)) for name in orders]
        return Faithfulness("model", "deleted", "", "", 50, 0, 20.0, 0, tuple(values), ())

    assert select(None).methods == ("occlusion",)
    chosen = select(None, measured(METHODS, "rollout"))
    assert chosen.methods == ("rollout",)
    assert "most faithful of 7 methods for this model, measured on 50 users" in chosen.why
    assert select(None, measured(METHODS[:2], METHODS[1])).methods == ("occlusion",)
    assert select("all", measured(METHODS, "rollout")).methods[0] == "rollout"
    assert sorted(select("all").methods) == sorted(METHODS) == sorted(methods.METHODS)


def test_the_reasons_are_the_events_that_speak_most_for_the_item(page: str) -> None:
    """With the values 0.1, -0.2, 0.0 and 0.3 the newest event has three quarters, then the oldest. The second one is negative."""
    text = " ".join(Page(page).text.split())
    reasons = text[text.index("Recommended because of") : text.index("Speaks most against it")]
    assert reasons.index("75 % of what speaks for it") < reasons.index("25 % of what speaks for it")
    assert reasons.index(NASTY) < reasons.index("item 0")
    assert "Speaks most against it: item 1" in text
