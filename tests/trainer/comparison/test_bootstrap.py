"""The paired bootstrap: against scipy's, with blocks of users, and reproducible."""

import numpy as np
import pytest
from scipy import stats

from trainer.comparison import bootstrap
from trainer.comparison.bootstrap import bootstrap_means, percentile_intervals


def test_intervals_are_those_of_scipys_bootstrap() -> None:
    values = np.random.default_rng(1).exponential(1.0, (300, 2))
    bounds = percentile_intervals(bootstrap_means(values.T, len(values), 20_000))
    for column, (low, high) in zip(values.T, bounds, strict=True):
        expected = stats.bootstrap(
            (column,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
        ).confidence_interval
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.008)


def test_equal_seeds_give_equal_draws_whatever_is_drawn_with_them() -> None:
    values = np.random.default_rng(1).normal(size=(50, 3))
    means = bootstrap_means(values.T, 50, 100, seed=4)
    assert np.allclose(bootstrap_means(values.T[1:2], 50, 100, seed=4)[:, 0], means[:, 1], rtol=0, atol=1e-14)
    assert not np.allclose(bootstrap_means(values.T, 50, 100, seed=5), means)


def test_users_are_drawn_together_for_all_columns() -> None:
    values = np.random.default_rng(1).normal(size=50)
    means = bootstrap_means((values, 2.0 * values), 50, 100)
    assert np.allclose(means[:, 1], 2.0 * means[:, 0])


def test_blocks_of_many_users_have_the_same_spread_and_skewness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exponential values, of which the mean has variance 1 / n and skewness 2 / sqrt(n)."""
    monkeypatch.setattr(bootstrap, "MAX_UNITS", 400)
    values = np.random.default_rng(6).exponential(1.0, (1601, 1))  # blocks of four users, one of five
    means = bootstrap_means(values.T, len(values), 20_000)[:, 0]
    assert means.mean() == pytest.approx(values.mean(), abs=0.001)
    assert means.std() == pytest.approx(values.std() / 1601**0.5, rel=0.08)
    assert stats.skew(means) == pytest.approx(stats.skew(values[:, 0]) / 1601**0.5, abs=0.06)
