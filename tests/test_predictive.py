"""Posterior predictive checks: silent on noise, loud and right about wavelengths on structure."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from sfhzoo.diagnostics.predictive import (
    MAX_LISTED,
    calc_log_false_alarm,
    calc_predictive_check,
)

N_PIXELS = 3000
WAVE = 10 ** (3.58 + 1e-4 * np.arange(N_PIXELS))
REDSHIFT = 0.1
ERROR = 0.02


def check(flux, model=None, used=None, error_scale=1.0, **changes):
    """A check of `flux` [wave] with errors of 0.02 against samples [sample, wave]."""
    model = np.ones((10, N_PIXELS)) if model is None else model
    used = np.ones(N_PIXELS, bool) if used is None else used
    scale = np.full(len(model), error_scale)
    ivar = np.full(N_PIXELS, ERROR**-2)
    return calc_predictive_check(WAVE, flux, ivar, used, model, scale, REDSHIFT, **changes)


def noise(seed):
    return ERROR * np.random.default_rng(seed).standard_normal(N_PIXELS)


class LinearFit:
    """Spectra from a Gaussian prior over smooth templates, and their exact posteriors."""

    def __init__(self, n_templates=8, width=0.3):
        t = np.linspace(-1, 1, N_PIXELS)
        self.templates = np.polynomial.legendre.legvander(t, n_templates - 1).T
        self.width = width
        precision = np.eye(n_templates) / width**2 + self.templates @ self.templates.T / ERROR**2
        self.covariance = np.linalg.inv(precision)

    def draw(self, seed, samples=100):
        """(flux [wave], posterior spectra [sample, wave])."""
        rng = np.random.default_rng(seed)
        truth = self.width * rng.standard_normal(len(self.templates))
        flux = truth @ self.templates + ERROR * rng.standard_normal(N_PIXELS)
        mean = self.covariance @ self.templates @ flux / ERROR**2
        draws = rng.multivariate_normal(mean, self.covariance, samples, method="cholesky")
        return flux, draws @ self.templates


@pytest.mark.parametrize("width", [1, 10, 100])
def test_the_false_alarm_formula_agrees_with_white_noise(width):
    rng = np.random.default_rng(width)
    chi = np.cumsum(rng.standard_normal((4000, N_PIXELS + 1)), axis=1)
    # width 1: differences of the cumulative sum are the pixels themselves
    sums = (chi[:, width:] - chi[:, :-width]) / np.sqrt(width)
    highest = np.abs(sums).max(axis=1)
    for z in np.quantile(highest, [0.9, 0.97, 0.99]):
        predicted = np.exp(calc_log_false_alarm(z, N_PIXELS, width))
        assert predicted == pytest.approx(np.mean(highest > z), rel=0.3)


def test_pure_noise_raises_about_one_false_alarm_in_a_hundred():
    alarms = sum(check(1 + noise(seed)).n_structures > 0 for seed in range(400))
    # the widths share their noise, so the true rate is below the bound of 1 %
    assert 1 <= alarms <= 9


def test_what_the_templates_absorb_does_not_hide_the_remaining_noise():
    fit = LinearFit()
    alarms = sum(check(*fit.draw(seed)).n_structures > 0 for seed in range(200))
    assert alarms <= 6
    # where nothing is told about the fit, means over 100 pixels look too quiet
    blind = [window_spread(*fit.draw(seed), known=False) for seed in range(20)]
    known = [window_spread(*fit.draw(seed), known=True) for seed in range(20)]
    assert np.mean(blind) < 0.92
    assert np.mean(known) == pytest.approx(1.0, abs=0.05)


def window_spread(flux, model, known, width=100):
    """Standard deviation of the significances of disjoint windows, each listed by a low bar."""
    from sfhzoo.diagnostics import predictive

    chi = (flux - np.median(model, axis=0)) / ERROR
    scaled = (model - np.median(model, axis=0)) / ERROR
    sums = predictive._running(chi, width)[::width]
    count = np.full(len(sums), float(width))
    z = sums / np.sqrt(width)
    if known:
        z = z / np.sqrt(1 - predictive._absorbed(predictive._running(scaled, width)[:, ::width],
                                                 count))  # fmt: skip
    return z.std()


def test_a_broad_bump_is_found_at_its_wavelengths_with_its_sign_and_size():
    flux = 1 + noise(3)
    flux[1500:1560] -= 0.03
    found = check(flux)
    first = found.structures[0]
    assert found.n_structures == 1
    assert first.significance < -6
    assert first.relative == pytest.approx(-0.03, abs=0.01)
    assert WAVE[1480] < first.low < WAVE[1515] and WAVE[1545] < first.high < WAVE[1580]
    assert first.low_rest == pytest.approx(first.low / 1.1)
    assert first.log10_false_alarm < -3
    (line,) = found.format_warnings()
    assert f"{first.low:.0f}-{first.high:.0f} Å" in line
    assert f"{100 * first.relative:+.1f} %" in line


def test_the_same_bump_passes_where_the_error_scale_says_the_errors_are_larger():
    flux = 1 + 3 * noise(3)
    flux[1500:1560] -= 0.03
    assert check(flux).n_structures > 0
    assert check(flux, error_scale=3.0).n_structures == 0


def test_single_bad_pixels_are_outliers_and_no_structure():
    flux = 1 + noise(4)
    flux[[700, 2000]] += [40 * ERROR, -12 * ERROR]
    found = check(flux)
    assert found.n_structures == 0
    assert [o.wave_obs for o in found.outliers] == pytest.approx([WAVE[700], WAVE[2000]])
    assert [o.chi for o in found.outliers] == pytest.approx([40, -12], abs=4)
    (line,) = found.format_warnings()
    assert line.startswith("2 pixels are far") and f"{WAVE[700]:.1f} Å (+" in line


def test_unused_pixels_and_those_without_a_model_are_not_looked_at():
    flux = 1 + noise(5)
    used = np.ones(N_PIXELS, bool)
    flux[1000:1100] += 1.0
    used[1000:1100] = False
    model = np.ones((10, N_PIXELS))
    flux[:50], model[:, :50] = 5.0, np.nan
    flux[100] = np.nan
    found = check(flux, model=model, used=used)
    assert found.n_pixels == N_PIXELS - 151
    assert found.format_warnings() == []
    assert found.chi2_per_pixel == pytest.approx(1.0, abs=0.1)


def test_many_features_are_listed_most_significant_first_and_counted():
    flux = 1 + noise(6)
    for number in range(14):
        flux[100 + 200 * number : 130 + 200 * number] += 0.03 + 0.004 * number
    found = check(flux)
    assert found.n_structures == 14 and len(found.structures) == MAX_LISTED
    order = [s.log10_false_alarm for s in found.structures]
    assert order == sorted(order)
    assert "and 9 more" in found.format_warnings()[0]
    stretches = sorted((s.low, s.high) for s in found.structures)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(stretches))


def test_the_result_can_be_written_as_json():
    flux = 1 + noise(7)
    flux[500:600] += 0.05
    flux[50] += 1
    result = check(flux).to_dict()
    assert json.loads(json.dumps(result)) == json.loads(json.dumps(result, default=str))
    assert set(result["structures"][0]) >= {"low", "high", "low_rest", "high_rest", "significance"}
    assert result["outliers"][0]["chi"] > 10


def test_a_short_spectrum_and_a_single_sample_are_checked_too():
    flux = 1 + noise(8)
    used = np.zeros(N_PIXELS, bool)
    used[:60] = True
    assert check(flux, model=np.ones((1, N_PIXELS)), used=used).n_pixels == 60


def test_arrays_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="expected four arrays"):
        check(np.ones(N_PIXELS - 1))
    with pytest.raises(ValueError, match="at least one used pixel"):
        check(np.ones(N_PIXELS), used=np.zeros(N_PIXELS, bool))
