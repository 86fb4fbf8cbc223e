"""Intervals and quantiles against known values and against their definition."""

import math

import pytest
from scipy.stats import binomtest

from dlm_benches.stats import quantile, wilson


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (7, 10), (294, 300), (1, 1000)])
def test_wilson_equals_scipy(right, n):
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)


def test_quantiles_interpolate():
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([0.0, 10.0], 0.2) == pytest.approx(2.0)
    assert quantile([5.0], 0.8) == 5.0
    assert math.isnan(quantile([], 0.5))
