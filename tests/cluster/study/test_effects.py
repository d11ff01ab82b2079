"""What a setting makes on its own, by hand-computed numbers: averaged over the others, paired by seed and user."""

from pathlib import Path

import numpy as np
import pytest

from cluster.study import outputs
from cluster.study.effects import Effect, effects
from cluster.study.summary import summarize
from tests.support.studies import costing, finished, plan_of
from trainer.evaluation.confidence import SHARE, mean_interval

GRID = """
[study.grid]
"model.encoder.num_blocks" = [1, 2]
"model.objective" = [{ kind = "full_softmax" }, { kind = "gbce" }]
"""
VARIANTS = """
[[study.variants]]
name = "narrow"
settings = { "tables.item.dim" = 8 }
[[study.variants]]
name = "wide"
settings = { "tables.item.dim" = 16 }
"""


# By point (blocks 1, 1, 2, 2; objective full, gbce, full, gbce), seed and user.
OF_POINTS = [[[0.0, 0.2], [0.2, 0.2]], [[0.1, 0.1], [0.1, 0.3]], [[0.4, 0.2], [0.4, 0.4]], [[0.3, 0.3], [0.5, 0.3]]]
VALUES = {(point, seed): users for point, seeds in enumerate(OF_POINTS) for seed, users in enumerate(seeds, 1)}


def by_value(found: tuple[Effect, ...]) -> dict[tuple[str, str], Effect]:
    return {(effect.setting, str(effect.value)): effect for effect in found}


def test_a_setting_is_averaged_over_the_others_and_compared_with_its_first_value(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GRID)
    found = effects(plan, finished(plan, VALUES))
    assert [(effect.setting, effect.num_trials) for effect in found] == [
        ("model.encoder.num_blocks", 4),
        ("model.encoder.num_blocks", 4),
        ("model.objective", 4),
        ("model.objective", 4),
    ]
    one, two, full, gbce = found
    assert (one.value, two.value) == (1, 2)
    assert (full.value, gbce.value) == ({"kind": "full_softmax"}, {"kind": "gbce"})
    # One block: seeds 0.1 and 0.2. Two: 0.3 and 0.4. So both seeds differ by 0.2, and users by 0.3 and 0.1.
    assert (one.validation.mean, two.validation.mean) == pytest.approx((0.15, 0.35))
    assert one.difference is None
    assert two.difference is not None
    assert two.difference.mean == pytest.approx(0.2)
    assert two.difference.over_seeds == pytest.approx((0.2, 0.2))
    expected = mean_interval(np.asarray([0.3, 0.1]), SHARE.of_differences)
    assert two.difference.over_users == pytest.approx(expected)
    # Seeds: full 0.2 and 0.3, gbce 0.2 and 0.3.
    assert gbce.difference is not None
    assert gbce.difference.mean == pytest.approx(0.0)
    assert two.test == two.validation


def test_a_seed_of_which_a_trial_failed_does_not_count_for_any_value(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GRID)
    last = plan.trials[-1]
    assert last.seed == 2
    found = by_value(effects(plan, finished(plan, VALUES, without=last.name)))
    two = found["model.encoder.num_blocks", "2"]
    assert two.num_trials == 2
    assert two.validation.mean == pytest.approx(0.3)
    assert two.validation.over_seeds is None
    assert effects(plan, {}) == ()


def test_variants_are_a_setting_among_the_others(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, VARIANTS + '[study.grid]\n"model.encoder.num_blocks" = [1, 2]\n')
    found = by_value(effects(plan, finished(plan, VALUES)))
    wide = found["variant", "wide"]
    assert wide.difference is not None
    assert wide.difference.mean == pytest.approx(0.2)
    assert ("model.encoder.num_blocks", "2") in found


@pytest.mark.parametrize("text", [VARIANTS, '[study.grid]\n"model.encoder.num_blocks" = [1, 2, 3, 4]\n'])
def test_of_a_single_setting_the_rows_say_it_already(tmp_path: Path, text: str) -> None:
    plan = plan_of(tmp_path, text)
    assert effects(plan, finished(plan, VALUES)) == ()


def test_table_and_page_show_them_and_results_hold_them(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GRID)
    summary = summarize(plan, finished(plan, VALUES), {}, [costing(3.0)] * 4)
    page = outputs.write(plan, summary)
    table = (plan.file.folder / "table.md").read_text()
    assert (
        "| model.encoder.num_blocks | 2 | 4 | 0.3500 | ±0.3933 | ±0.0686 | +0.2000 ±0.1708 | 0.3500 ±0.3933 |" in table
    )
    assert '| model.objective | {"kind": "gbce"} | 4 |' in table
    assert "Effect of each setting" in page.read_text()
    assert [effect["num_trials"] for effect in outputs.results_values(plan, summary)["effects"]] == [4] * 4
