"""Tests of paired differences against scipy, all choices of signs, and random ones."""

import numpy as np
import pytest
from scipy import stats

from trainer.comparison import paired_tests
from trainer.comparison.paired_tests import holm, randomisation_test, sign_test


@pytest.mark.parametrize(
    ("better", "worse"),
    [(0, 0), (1, 0), (0, 3), (6, 0), (5, 9), (7, 7), (50, 80), (900, 1100), (100_500, 99_000), (3000, 1)],
)
def test_the_sign_test_is_the_exact_binomial_test(better: int, worse: int) -> None:
    expected = stats.binomtest(better, better + worse, 0.5).pvalue if better + worse else 1.0
    assert sign_test(better, worse) == pytest.approx(expected, rel=1e-8, abs=1e-300)
    assert sign_test(worse, better) == sign_test(better, worse)


def test_the_sign_test_of_very_many_users_is_that_of_the_normal_distribution() -> None:
    expected = stats.binomtest(401_300, 800_000, 0.5).pvalue
    assert paired_tests.MAX_EXACT_SIGNS < 800_000
    assert sign_test(401_300, 398_700) == pytest.approx(expected, rel=1e-3)


def test_on_hits_the_randomisation_test_is_mcnemars() -> None:
    hits = np.repeat([1.0, -1.0, 0.0], [31, 14, 900])
    assert randomisation_test(hits) == sign_test(31, 14)
    assert randomisation_test(0.3 * hits) == sign_test(31, 14)  # any size, as of shares


@pytest.mark.parametrize("number", [2, 5, 12, 14])
def test_of_few_users_all_choices_of_signs_are_tried(number: int) -> None:
    differences = np.random.default_rng(number).normal(0.5, 1.0, number)
    expected = stats.permutation_test(
        (differences,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    ).pvalue
    assert randomisation_test(differences) == pytest.approx(min(1.0, expected), rel=1e-9)


@pytest.mark.parametrize(("number", "shift"), [(21, 0.1), (21, 0.4), (22, 0.6)])
def test_the_saddlepoint_is_near_the_share_of_all_choices(
    number: int, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    differences = np.random.default_rng(number).normal(shift, 1.0, number)
    approximate = randomisation_test(differences)
    monkeypatch.setattr(paired_tests, "MAX_ENUMERATED", 22)
    assert approximate == pytest.approx(randomisation_test(differences), rel=0.04)


def test_of_many_users_it_is_students_test() -> None:
    differences = np.random.default_rng(3).normal(0.03, 1.0, 6000)
    assert randomisation_test(differences) == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, rel=0.02)


def test_ends_and_middle_of_the_distribution() -> None:
    sizes = np.linspace(1.0, 2.0, 30)
    assert randomisation_test(sizes) == pytest.approx(2.0**-29)  # all have one sign
    assert randomisation_test(np.concatenate((sizes, -sizes))) == pytest.approx(1.0)
    assert randomisation_test(np.zeros(9)) == 1.0
    tiny = randomisation_test(np.random.default_rng(0).normal(1.0, 1.0, 5000))
    assert 0.0 <= tiny < 1e-300
    small = randomisation_test(np.random.default_rng(0).normal(1.0, 1.0, 200))
    assert 1e-60 < small < 1e-20


def test_p_values_are_uniform_where_there_is_no_difference() -> None:
    """Gains of ndcg, most of them equal in both models: 2,000 draws of 400 users."""
    generator = np.random.default_rng(8)
    gains = np.concatenate((np.zeros(12), 1.0 / np.log2(np.arange(2, 12))))
    p = np.asarray(
        [
            randomisation_test(
                (generator.choice(gains, 400) - generator.choice(gains, 400)) * (generator.random(400) < 0.3)
            )
            for _ in range(2000)
        ]
    )
    for level in (0.01, 0.05, 0.2, 0.5):
        assert abs((p < level).mean() - level) < 3.5 * (level * (1 - level) / 2000) ** 0.5


def test_holm_corrects_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
