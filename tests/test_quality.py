"""Quality metrics: zero for the same population, and each sees the fault it is there for."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from sfhzoo.diagnostics import quality
from sfhzoo.errors import Incompatible, SamplingError, SfhzooError
from sfhzoo.histories import Histories, HistoryScaling
from sfhzoo.priors.network import SpectralMLP
from sfhzoo.priors.prior import Prior
from sfhzoo.priors.schedule import NoiseSchedule
from sfhzoo.priors.training import calc_principal_components
from sfhzoo.simulations import trainingset
from sfhzoo.timebins import TimeBins

BINS = TimeBins()
N = 4000


def make_population(seed: int, n: int = N) -> Histories:
    """Gaussian histories in log SFR and log Z: what an untrained network can draw exactly."""
    rng = np.random.default_rng(seed)
    time = np.arange(64) / 64
    slope, level = rng.normal(0, 1, (n, 1)), rng.normal(0.5, 0.4, (n, 1))
    log_sfr = level + slope * (time - 0.5) + 0.2 * rng.standard_normal((n, 64))
    logzsol = -1 + 0.8 * time + 0.1 * level + 0.1 * rng.standard_normal((n, 64))
    return Histories(10**log_sfr, logzsol)


@pytest.fixture(scope="module")
def truth() -> Histories:
    return make_population(1)


@pytest.fixture(scope="module")
def sample() -> Histories:
    return make_population(2)


def metrics_without_classifier(draws, truth, monkeypatch):
    monkeypatch.setattr(quality, "_classifier_metrics", lambda *args: {})
    return quality.calc_metrics(draws, truth, BINS)


# ---- parts against closed forms -----------------------------------------------------------------


def test_the_ks_distance_is_the_largest_gap_of_the_distribution_functions():
    a = np.linspace(0, 1, 2001)
    assert quality.calc_ks_distance(a, a) == 0
    assert quality.calc_ks_distance(a, a + 0.3) == pytest.approx(0.3, abs=1e-3)
    assert quality.calc_ks_distance(a, a + 2) == 1
    with_gaps = np.r_[a, np.full(500, np.nan)]
    assert quality.calc_ks_distance(with_gaps, a) == 0
    assert quality.calc_ks_distance(np.full(5, np.nan), a) == 1


def test_white_noise_has_the_burstiness_of_its_residuals_about_a_five_bin_mean():
    noise = np.random.default_rng(1).normal(0, 0.3, (5000, 64))
    expected = 0.3 * np.sqrt(1 - 1 / 5)
    assert quality.calc_burstiness(noise, BINS) == pytest.approx(expected, rel=0.01)


def test_a_straight_line_has_no_burstiness_and_the_floor_is_not_a_burst():
    line = np.linspace(-2.9, 2, 64)[None]
    assert quality.calc_burstiness(line, BINS) == pytest.approx(0, abs=1e-12)
    quenched = np.where(np.arange(64) < 32, 1.0, -4.0)[None]
    assert quality.calc_burstiness(quenched, BINS) == 0


def test_the_correlation_is_numpys_and_a_constant_column_correlates_with_none():
    x = np.random.default_rng(1).normal(size=(100, 5)) @ np.triu(np.ones((5, 5)))
    np.testing.assert_allclose(quality.calc_correlation(x), np.corrcoef(x.T), atol=1e-12)
    x[:, 2] = 3.0
    assert np.all(quality.calc_correlation(x)[2] == 0)


def test_the_derived_quantities_of_a_constant_sfr_have_their_closed_forms():
    q = quality.calc_quantities(Histories(np.full((1, 64), 2.0), np.full((1, 64), 0.1)), BINS)
    today = BINS.age_today
    assert q["log_mass_formed"][0] == pytest.approx(np.log10(2e9 * today))
    assert q["t50"][0] == pytest.approx(today / 2) and q["t90"][0] == pytest.approx(0.9 * today)
    # per mass formed: 1 / age of the universe
    assert q["log_ssfr_1gyr"][0] == pytest.approx(np.log10(1e-9 / today))
    assert q["logzsol_mass_weighted"][0] == pytest.approx(0.1)


def test_a_galaxy_without_stars_does_not_break_the_metrics(truth):
    empty = Histories(np.zeros((10, 64)), np.full((10, 64), -3.0))
    q = quality.calc_quantities(empty, BINS)
    assert np.all(np.isnan(q["t50"])) and np.all(q["log_ssfr_1gyr"] == -14)
    assert np.all(q["logzsol_mass_weighted"] == -3)


def test_values_close_to_a_floor_are_snapped_to_it_for_the_classifier():
    # log10(SFR + 1e-4) = -3.98 at SFR = 4.7e-6
    sfr = np.tile([0.0, 4e-6, 6e-6, 1.0], (2, 16))
    logz = np.tile([-3.0, -2.985, -2.975, 0.0], (2, 16))
    x = quality.calc_features(Histories(sfr, logz), BINS)["x"]
    assert x.shape == (2, 128)
    assert np.array_equal(x[0, :4] == x[0, 0], [True, True, False, False])
    assert np.array_equal(x[0, 64:68] == -3.0, [True, True, False, False])


# ---- each metric sees its fault -----------------------------------------------------------------


def test_another_sample_of_the_same_population_is_within_sampling_error(
    truth, sample, monkeypatch
):
    metrics = metrics_without_classifier(sample, truth, monkeypatch)
    for name, metric in metrics.items():
        if name.startswith("ks_"):
            # 1e-4 quantile of the two-sample statistic
            assert metric["value"] < 2.2 * np.sqrt(2 / N)
    assert metrics["bin_mean_log_sfr"]["value"] < 4.5 * np.sqrt(2 / N)
    assert metrics["bin_std_logzsol"]["value"] < 4.5 / np.sqrt(N)
    assert metrics["burstiness"]["passed"]


@pytest.mark.parametrize(
    ("change", "seen_by"),
    [
        (lambda h: h._replace(sfr=h.sfr * 1.3), {"ks_log_mass_formed", "bin_mean_log_sfr"}),
        (
            lambda h: h._replace(logzsol=h.logzsol + 0.05),
            {"ks_logzsol_mass_weighted", "bin_mean_logzsol"},
        ),
        (
            lambda h: h._replace(logzsol=1.1 * h.logzsol - 0.1 * h.logzsol.mean(axis=0)),
            {"bin_std_logzsol"},
        ),
        (
            lambda h: h._replace(sfr=h.sfr * np.linspace(1.3, 0.8, 64)),
            {"ks_t50", "ks_t90", "bin_mean_log_sfr"},
        ),
        (
            lambda h: h._replace(logzsol=np.roll(h.logzsol, 1, axis=0)),
            {"correlation_rms", "correlation_max"},
        ),
        (
            lambda h: h._replace(
                sfr=h.sfr * 10 ** (0.12 * np.random.default_rng(5).standard_normal(h.sfr.shape))
            ),
            {"burstiness"},
        ),
        (
            lambda h: h._replace(sfr=np.where(np.arange(64) < 58, h.sfr, 0.7 * h.sfr)),
            {"ks_log_ssfr_1gyr", "bin_mean_log_sfr"},
        ),
    ],
    ids=["mass", "metallicity", "spread", "older", "decorrelated", "noisy", "late"],
)
def test_a_faulty_sample_fails_the_metric_that_is_there_for_it(
    truth, change, seen_by, monkeypatch
):
    metrics = metrics_without_classifier(change(truth), truth, monkeypatch)
    failed = {name for name, metric in metrics.items() if not metric["passed"]}
    assert seen_by <= failed


def test_identical_histories_have_zero_in_every_metric(truth, monkeypatch):
    metrics = metrics_without_classifier(truth, truth, monkeypatch)
    assert all(m["value"] == pytest.approx(0, abs=1e-12) for m in metrics.values())


def test_the_classifier_is_at_chance_for_one_population_and_sees_another(truth, sample):
    pytest.importorskip("sklearn")
    a, b = (quality.calc_features(h, BINS)["derived"] for h in (sample, truth))
    accuracy, error = quality.calc_classifier_accuracy(a, b, 0)
    assert error == pytest.approx(np.sqrt(0.25 / N))
    assert accuracy == pytest.approx(0.5, abs=4 * error)
    accuracy, _ = quality.calc_classifier_accuracy(a + 0.8 * a.std(axis=0), b, 0)
    assert accuracy > 0.6


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(SfhzooError, match=r"sfhzoo\[validate\]"):
        quality.calc_classifier_accuracy(np.zeros((4, 1)), np.zeros((4, 1)), 0)


# ---- a whole evaluation -------------------------------------------------------------------------


def make_set(directory, n: int = 6000, n_test: int = 2000):
    sfr, logzsol = (v.astype(np.float32) for v in make_population(3, n))
    attributes = {
        "name": "gaussian-v1",
        "recipe": "{}",
        "cosmology": "Planck15",
        "n_test": n_test,
        "sha256": trainingset.content_hash([sfr, logzsol]),
    }
    data = {"sfr": sfr, "logzsol": logzsol, "log_halo_mass": np.zeros(n, np.float32)}
    trainingset._write(directory / "set.zarr", data, attributes)
    return directory / "set.zarr"


def make_gaussian_prior(path, n_bins: int = 64) -> Prior:
    """An untrained network around the covariance of the training set: exact for a Gaussian."""
    sfr, logzsol = trainingset.load(path).histories("train")
    scaling = HistoryScaling.fit(sfr, logzsol)
    x = torch.from_numpy(scaling.to_x(sfr, logzsol)).float()
    basis, eigenvalues = calc_principal_components(x)
    schedule = NoiseSchedule()
    network = SpectralMLP((2, 64), 8, 1, schedule, basis, eigenvalues).eval()
    config = {
        "name": "gaussian-v1",
        "sde": schedule.to_dict(),
        "scaling": scaling.to_dict(),
        "cosmology": "Planck15",
        "n_bins": n_bins,
    }
    return Prior(network, config)


def test_the_exact_prior_of_a_gaussian_population_passes_the_classifier_and_the_spreads(tmp_path):
    pytest.importorskip("sklearn")
    path = make_set(tmp_path)
    out = tmp_path / "metrics.json"
    result = quality.evaluate(make_gaussian_prior(path), path, out, n_draws=2000)
    assert json.loads(out.read_text()) == result
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert (result["n_draws"], result["n_test"], result["schema"]) == (2000, 2000, 1)
    assert result["training_set"]["sha256"] == trainingset.load(path).sha256
    metrics = result["metrics"]
    for name in ("burstiness", "classifier_x", "classifier_derived"):
        assert metrics[name]["passed"], (name, metrics[name])
    # 2000 against 2000: sampling error alone may cross the tighter thresholds
    assert all(m["value"] < 2.2 * np.sqrt(2 / 2000) for k, m in metrics.items() if "ks_" in k)
    assert result["passed"] == all(m["passed"] for m in metrics.values())
    report = quality.format_report(result)
    assert all(f"| {name} |" in report for name in metrics)


def test_a_prior_on_other_bins_is_refused(tmp_path):
    path = make_set(tmp_path, 50, 10)
    with pytest.raises(Incompatible, match="32 bins"):
        quality.evaluate(make_gaussian_prior(path, n_bins=32), path)


def test_draws_that_are_not_finite_are_counted_in_the_error(tmp_path):
    prior = make_gaussian_prior(make_set(tmp_path, 50, 10))
    with torch.no_grad():
        prior.network.out.bias.fill_(float("nan"))
    with pytest.raises(SamplingError, match="5 of 5"):
        quality.draw_histories(prior, 5)


def test_draws_in_batches_are_the_draws_of_one_call(tmp_path, monkeypatch):
    prior = make_gaussian_prior(make_set(tmp_path, 200, 10))
    monkeypatch.setattr(quality, "BATCH", 4)
    drawn = quality.draw_histories(prior, 10, seed=3)
    again = quality.draw_histories(prior, 10, seed=3)
    assert drawn.sfr.shape == (10, 64) and np.array_equal(drawn.sfr, again.sfr)
    assert not np.array_equal(drawn.sfr, quality.draw_histories(prior, 10, seed=4).sfr)
