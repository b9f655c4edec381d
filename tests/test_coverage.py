"""Ranks, coverage and TARP against closed forms; calibrated and wrong posteriors told apart."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sfhzoo.diagnostics import coverage, scorecard
from sfhzoo.diagnostics.mocks import BANDS
from sfhzoo.diagnostics.scorecard import QUANTITIES, Thresholds

N_QUANTITIES = len(QUANTITIES)
CORRELATION = 0.6


def make_fits(n, n_samples=200, width=1.0, bias=0.0, seed=0):
    """(samples [mock, sample, quantity], truth [mock, quantity]) of correlated Gaussians.

    The truth is N(0, C); the posterior claims N(bias, width² C).
    """
    rng = np.random.default_rng(seed)
    c = CORRELATION + (1 - CORRELATION) * np.eye(N_QUANTITIES)
    half = np.linalg.cholesky(c).T
    truth = rng.standard_normal((n, N_QUANTITIES)) @ half
    samples = bias + width * rng.standard_normal((n, n_samples, N_QUANTITIES)) @ half
    return samples, truth


def make_rows(n_per_band=210, n_samples=150, seed=0, failed=(), **wrong):
    """Lines of a run on `n_per_band` mocks in each band."""
    rng = np.random.default_rng(seed + 1)
    samples, truth = make_fits(len(BANDS) * n_per_band, n_samples, seed=seed, **wrong)
    rows = []
    for i, (s, t) in enumerate(zip(samples, truth, strict=True)):
        row = {"mock": i, "set": BANDS[i % 3], "redshift": 0.1, "snr": 10.0 + i % 90}
        if i in failed:
            rows.append({**row, "error": "SamplingError: no"})
            continue
        p = np.percentile(s, [50, 16, 84, 2.5, 97.5], axis=0)
        quantities = {
            q: {
                "truth": 0.05 * t[k],
                "rank": coverage.calc_rank(s[:, k], t[k], rng),
                # log mass must pass its limit in dex
                **dict(zip(("median", "p16", "p84", "p2_5", "p97_5"), 0.05 * p[:, k])),
            }
            for k, q in enumerate(QUANTITIES)
        }
        tarp = coverage.calc_tarp_ranks(s, t, rng)
        rows.append({**row, "quantities": quantities, "tarp": tarp.tolist(),
                     "chi2_per_pixel": 1.0, "wall_s": 3.0, "ess": None})  # fmt: skip
    return rows


# ---- ranks --------------------------------------------------------------------------------------


def test_the_rank_counts_the_samples_below_the_truth():
    rng = np.random.default_rng(0)
    samples = np.arange(99) + 0.5
    for below in (0, 30, 99):
        assert below / 100 <= coverage.calc_rank(samples, float(below), rng) < (below + 1) / 100


def test_ranks_of_a_calibrated_posterior_are_uniform_even_with_few_samples():
    rng = np.random.default_rng(1)
    draws = rng.standard_normal((4000, 10))
    ranks = [coverage.calc_rank(d[1:], d[0], rng) for d in draws]
    assert stats.kstest(ranks, "uniform").pvalue > 0.01


def test_ties_at_a_floor_are_broken_at_random():
    rng = np.random.default_rng(2)
    draws = np.maximum(rng.standard_normal((4000, 30)), 0.3)  # 62 % at the floor
    ranks = [coverage.calc_rank(d[1:], d[0], rng) for d in draws]
    assert stats.kstest(ranks, "uniform").pvalue > 0.01
    # noise in the last digit is no order
    one = [coverage.calc_rank([-14.0 + 1e-13] * 9, -14.0, rng) for _ in range(2000)]
    assert stats.kstest(one, "uniform").pvalue > 0.01


def test_an_undefined_sample_says_nothing():
    rng = np.random.default_rng(3)
    ranks = [coverage.calc_rank([np.nan] * 50, 1.0, rng) for _ in range(2000)]
    assert stats.kstest(ranks, "uniform").pvalue > 0.01


# ---- coverage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.7, 1.0, 1.4])
def test_coverage_of_a_gaussian_is_the_closed_form(width):
    samples, truth = make_fits(4000, 400, width=width)
    rng = np.random.default_rng(4)
    ranks = [coverage.calc_rank(s[:, 0], t[0], rng) for s, t in zip(samples, truth)]
    levels = np.array(coverage.LEVELS)
    expected = 2 * stats.norm.cdf(width * stats.norm.ppf(0.5 + levels / 2)) - 1
    # finite samples give the outer levels a little back
    tolerance = 3 * coverage.calc_binomial_error(expected, 4000) + 0.004
    assert np.all(np.abs(coverage.calc_coverage(ranks) - expected) < tolerance)


def test_a_failed_fit_holds_the_truth_nowhere():
    assert coverage.calc_coverage([0.5, np.nan]).tolist() == [0.5] * 4
    assert coverage.calc_tarp_coverage([[0.2, 0.4], [np.nan, np.nan]], [1.0]).tolist() == [0.5]


def test_the_binomial_band_holds_what_it_says():
    draws = np.random.default_rng(5).binomial(200, 0.68, 20_000) / 200
    low, high = coverage.calc_binomial_band([0.68], 200)
    inside = np.mean((draws >= low[0]) & (draws <= high[0]))
    assert 0.945 < inside < 0.97


def test_histogram_p_values_of_uniform_ranks_are_uniform():
    ranks = np.random.default_rng(6).random((1000, 200))
    p = [coverage.calc_histogram_p(r) for r in ranks]
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert coverage.calc_histogram_p(stats.norm.cdf(1.5 * stats.norm.ppf(ranks[0]))) < 1e-3


def test_the_bootstrap_error_is_that_of_the_mean():
    values = np.random.default_rng(7).standard_normal(400)
    found = coverage.bootstrap(values, np.random.default_rng(8))
    assert found == pytest.approx(values.std() / 20, rel=0.1)


@pytest.mark.parametrize(("width", "sign"), [(0.8, -1), (1.25, 1)])
def test_the_signed_deviation_tells_over_from_under_confidence(width, sign):
    samples, truth = make_fits(600, width=width)
    rng = np.random.default_rng(9)
    ranks = [[coverage.calc_rank(s[:, k], t[k], rng) for k in range(N_QUANTITIES)]
             for s, t in zip(samples, truth)]  # fmt: skip
    value, error = coverage.calc_signed_deviation(ranks, rng)
    assert sign * value > 4 * error


def test_the_error_of_the_signed_deviation_knows_that_quantities_are_correlated():
    values, errors = [], []
    for seed in range(60):
        samples, truth = make_fits(60, 40, seed=seed)
        rng = np.random.default_rng(seed)
        ranks = [[coverage.calc_rank(s[:, k], t[k], rng) for k in range(N_QUANTITIES)]
                 for s, t in zip(samples, truth)]  # fmt: skip
        value, error = coverage.calc_signed_deviation(ranks, rng)
        values.append(value)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)
    assert abs(np.mean(values)) < 3 * np.std(values) / 60**0.5


def test_the_slope_and_its_error_are_those_of_a_line():
    rng = np.random.default_rng(10)
    x = rng.random(2000)
    slope, error = coverage.calc_slope(x, 0.7 * x + 0.1 * rng.standard_normal(2000))
    assert abs(slope - 0.7) < 3 * error
    assert error == pytest.approx(0.1 / (x.std() * 2000**0.5), rel=0.1)
    assert np.isnan(coverage.calc_slope([1, 1, 1], [1, 2, 3])[0])


# ---- TARP ---------------------------------------------------------------------------------------


def tarp_of(n=210, **wrong):
    samples, truth = make_fits(n, 150, **wrong)
    rng = np.random.default_rng(11)
    return np.array([coverage.calc_tarp_ranks(s, t, rng) for s, t in zip(samples, truth)])


def test_tarp_ranks_of_a_calibrated_posterior_are_uniform():
    ranks = tarp_of(1500, seed=3)
    # one reference per mock: those of a mock are correlated
    assert stats.kstest(ranks[:, 0], "uniform").pvalue > 0.01
    assert coverage.calc_tarp_deviation(ranks) < 0.02


@pytest.mark.parametrize("wrong", [{"width": 0.75}, {"width": 1.33}, {"bias": 0.8}])
def test_tarp_sees_wrong_widths_and_biases(wrong):
    assert coverage.calc_tarp_deviation(tarp_of()) < 0.05
    assert coverage.calc_tarp_deviation(tarp_of(**wrong)) > 0.05


def test_tarp_sees_a_wrong_correlation_that_no_single_quantity_shows():
    samples, truth = make_fits(600, 150)
    shuffled = np.random.default_rng(12).permuted(samples, axis=1)  # right margins
    rng = np.random.default_rng(13)
    ranks = [coverage.calc_tarp_ranks(s, t, rng) for s, t in zip(shuffled, truth)]
    assert coverage.calc_tarp_deviation(ranks) > 0.05


def test_tarp_deviation_is_the_largest_distance_of_the_curve_from_the_diagonal():
    ranks = np.random.default_rng(14).beta(2, 2, (50, 8))
    alphas = np.linspace(0, 1, 20_001)
    curve = np.abs(coverage.calc_tarp_coverage(ranks, alphas) - alphas).max()
    assert coverage.calc_tarp_deviation(ranks) == pytest.approx(curve, abs=1e-3)
    assert coverage.calc_tarp_deviation(np.full((5, 2), np.nan)) == 1.0


# ---- verdict ------------------------------------------------------------------------------------


def failed_checks(metrics):
    return [c["name"] for c in metrics["checks"] if not c["passed"]]


def test_a_calibrated_sampler_passes_every_check():
    metrics = scorecard.calc_metrics(make_rows())
    assert failed_checks(metrics) == []
    assert metrics["passed"] and not metrics["widened"]
    assert metrics["sets"][BANDS[0]]["n"] == 210


@pytest.mark.parametrize("wrong", [{"width": 0.75}, {"width": 1.33}, {"bias": 0.5}])
def test_a_wrong_sampler_misses_many_checks(wrong):
    metrics = scorecard.calc_metrics(make_rows(**wrong))
    assert len(failed_checks(metrics)) >= 6


def test_a_slightly_narrow_sampler_is_caught_by_the_pooled_deviation():
    metrics = scorecard.calc_metrics(make_rows(width=0.9))
    assert any("signed deviation" in name for name in failed_checks(metrics))
    assert metrics["signed_deviation"]["value"] < 0


def test_few_mocks_get_wider_limits_and_still_tell_wrong_from_right():
    right = scorecard.calc_metrics(make_rows(20))
    wrong = scorecard.calc_metrics(make_rows(20, width=0.5))
    assert right["widened"] and failed_checks(right) == []
    assert len(failed_checks(wrong)) >= 6
    limits = Thresholds().widened(20)
    assert limits.mean_deviation == pytest.approx(0.03 + 0.083 - 0.026, abs=0.002)
    assert Thresholds().widened(200) == Thresholds()


def test_failed_fits_are_counted_and_cost_coverage():
    metrics = scorecard.calc_metrics(make_rows(failed=range(0, 630, 3)))
    assert metrics["n_failed"] == 210
    first = metrics["sets"][BANDS[0]]
    assert first["n"] == first["n_failed"] == 210
    assert first["largest_deviation"] == pytest.approx(0.95)
    assert not metrics["passed"]


def test_a_check_that_could_not_be_measured_is_a_miss():
    assert not scorecard._check("x", None, 1.0)["passed"]


def test_metrics_are_plain_json_without_nan():
    import json

    text = json.dumps(scorecard.calc_metrics(make_rows(10)), allow_nan=False)
    assert "rank histograms" in text


def test_a_band_without_mocks_is_refused():
    rows = [r for r in make_rows(10) if r["set"] != BANDS[1]]
    with pytest.raises(ValueError, match="every S/N band"):
        scorecard.calc_metrics(rows)
