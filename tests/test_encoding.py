"""What the posterior network sees: recovery, invariances, and an independent path to it.

The simulator (broadening by FFT on SSP components) and the forward model (sparse matrices on the
instrument's pixels) share nothing but the grid and the time weights.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from galaxies import BINS, calc_exact_flux, load_grid, make_scaling, make_states, make_x

from sfhzoo.forward.model import ForwardModel
from sfhzoo.forward.redshift import calc_flux_factor
from sfhzoo.samplers import encoding as encoding_module
from sfhzoo.samplers import simulator as simulator_module
from sfhzoo.samplers.encoding import (
    LOG_STEP,
    N_SEGMENTS,
    PIXEL_KMS,
    Conditions,
    Encoder,
    calc_level,
    rest_grid,
    segment_of_pixel,
    to_rest_grid,
)
from sfhzoo.spectra.masks import calc_line_mask, calc_sky_mask

K = 40
SHARP = 1e7
"""A cap on the precision that does not matter."""
N_REDSHIFTS = 8
N_COEFFICIENTS = K - 1


@pytest.fixture(scope="module")
def simulator():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulator_module, "N_REDSHIFTS", N_REDSHIFTS)
        yield simulator_module.Simulator(
            load_grid(), BINS, make_scaling(), simulator_module.Domain()
        )


@pytest.fixture(scope="module")
def encoder(simulator):
    g = torch.Generator().manual_seed(0)
    n = 400
    u = torch.randn(n, 3, generator=g)
    node = torch.randint(0, N_REDSHIFTS, (n,), generator=g)
    spectra = simulator.spectra(make_x(n, 1).float(), node, u, 100 * torch.rand(n, generator=g))
    return Encoder.fit(spectra, K)


@pytest.fixture(scope="module")
def galaxy(encoder):
    """A spectrum [1, pixel] of known coefficients [K - 1], its weight per pixel at S/N 50."""
    c = torch.randn(K, generator=torch.Generator().manual_seed(1)).double()
    c[0] = 0.0
    flux = 3e7 * (encoder.basis[:, 0] + encoder.basis @ c)
    return flux[None], c[1:], float((50 / flux.mean()) ** 2)


def encode(encoder, flux, weight, known, cap=SHARP, seed=5):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding_module, "MAX_SNR", cap)
        return encoder.encode(flux, weight, known, torch.Generator().manual_seed(seed))


def conditions(n=1):
    one = torch.ones(n, dtype=torch.float64)
    return Conditions(12.5 * one, 30 * one, 0 * one)


def weights(value, segments=range(N_SEGMENTS)):
    w = torch.zeros(1, N_SEGMENTS, dtype=torch.float64)
    w[:, list(segments)] = value
    return w


def split(features):
    """(coefficients, ln spreads, extras) of features [1, n_features]."""
    return features[0].double().split([N_COEFFICIENTS, N_COEFFICIENTS, 7])


def test_the_coefficients_of_a_spectrum_in_the_basis_are_recovered(encoder, galaxy):
    flux, truth, weight = galaxy
    # with noise a millionth of the flux the unit prior has no say
    found, spread, _ = split(encode(encoder, flux, weights(weight * 1e8), conditions()))
    level = float((flux[0] * (encoder.basis[:, 0] != 0)).sum() / (encoder.basis[:, 0] != 0).sum())
    # the encoder normalises by the mean flux, then by what its first coefficient adds to it
    torch.testing.assert_close(found, truth, rtol=0, atol=2e-3)
    assert float(spread.max()) < np.log(0.01)
    assert level == pytest.approx(3e7, rel=0.2)


@pytest.mark.parametrize("segments", [range(N_SEGMENTS), range(8, 26), range(24, 44)])
def test_the_luminosity_does_not_depend_on_what_part_was_seen(encoder, galaxy, segments):
    """It is the amplitude of the basis' first column, whose mean is 1, not the mean flux."""
    flux, _, weight = galaxy
    w = weights(weight * 1e8, segments)
    *_, extras = split(encode(encoder, flux, w, conditions()))
    assert float(extras[0]) == pytest.approx(np.log10(3e7) - 6.0, abs=2e-3)


def test_the_spreads_are_those_of_repeated_noise(encoder, galaxy):
    """The posterior of c under its unit prior: the estimates scatter by spread² - spread⁴."""
    flux, truth, weight = galaxy
    n, g = 600, torch.Generator().manual_seed(2)
    noise = torch.randn((n, flux.shape[1]), generator=g, dtype=torch.float64) / weight**0.5
    w = weights(weight).expand(n, -1)
    features = encode(encoder, flux + noise, w, conditions(n)).double()
    found, spread = features[:, :N_COEFFICIENTS], features[0, N_COEFFICIENTS:-7].exp()
    assert float(spread[0]) < 0.1 and float(spread[-1]) < 1.0
    # an estimate that shrinks towards 0 errs by less than its spread where the truth is near 1
    z = (found - truth).square().mean(0).sqrt() / spread
    well_known = spread < 0.3
    assert int(well_known.sum()) >= 8
    assert 0.85 < float(z[well_known].mean()) < 1.15


def test_a_segment_without_data_has_no_influence(encoder, galaxy):
    flux, _, weight = galaxy
    w = weights(weight, range(10, 40))
    changed = flux.clone()
    away = torch.from_numpy((segment_of_pixel() < 10) | (segment_of_pixel() >= 40))
    changed[:, away] = 1e12 * torch.randn(int(away.sum()), dtype=torch.float64)
    before, after = (encode(encoder, f, w, conditions()) for f in (flux, changed))
    assert torch.equal(before, after)
    inside = flux.clone()
    inside[:, torch.from_numpy(segment_of_pixel() == 20)] *= 1.02
    assert not torch.allclose(encode(encoder, inside, w, conditions()), before, atol=1e-3)


def test_emission_lines_have_no_influence(encoder, galaxy):
    flux, _, weight = galaxy
    lines = torch.from_numpy(~calc_line_mask(rest_grid()))
    changed = flux.clone()
    changed[:, lines] *= 30.0
    before, after = (encode(encoder, f, weights(weight), conditions()) for f in (flux, changed))
    assert torch.equal(before, after)
    assert 100 < int(lines.sum()) < 1000


@pytest.mark.parametrize("factor", [10.0, 1e-3])
def test_a_brighter_galaxy_changes_the_luminosity_only(encoder, galaxy, factor):
    flux, _, weight = galaxy
    w = weights(weight, range(12, 44))
    before = encode(encoder, flux, w, conditions())[0]
    after = encode(encoder, flux * factor, w / factor**2, conditions())[0]
    difference = after - before
    assert float(difference[-7]) == pytest.approx(np.log10(factor), abs=1e-5)
    difference[-7] = 0.0
    assert float(difference.abs().max()) < 1e-4


def test_what_is_known_besides_the_flux_has_its_own_features(encoder, galaxy):
    flux, _, weight = galaxy
    one = torch.ones(1, dtype=torch.float64)
    base = encode(encoder, flux, weights(weight), conditions())[0]
    other = encode(encoder,
        flux, weights(weight), Conditions(10.5 * one, 130 * one, 0.04 * one)
    )[0]  # fmt: skip
    assert torch.equal(base[:-3], other[:-3])
    np.testing.assert_allclose((other - base)[-3:].numpy(), [-1.0, 1.0, 1.2], atol=1e-6)


def test_pure_noise_gives_finite_features(encoder):
    g = torch.Generator().manual_seed(3)
    flux = torch.randn((50, len(rest_grid())), generator=g, dtype=torch.float64)
    features = encode(encoder, flux, weights(1.0).expand(50, -1), conditions(50))
    assert bool(features.isfinite().all())


def test_no_coefficient_is_known_better_than_the_cap(encoder, galaxy):
    """The noise added is the noise declared: estimates scatter by their spread about the truth."""
    flux, truth, weight = galaxy
    n = 400
    w, known = weights(weight * 1e8).expand(n, -1), conditions(n)
    features = encode(encoder, flux.expand(n, -1), w, known, cap=20.0).double()
    found, spread = features[:, :N_COEFFICIENTS], features[0, N_COEFFICIENTS:-7].exp()
    torch.testing.assert_close(spread, torch.full_like(spread, 1 / 20), rtol=0.01, atol=0)
    scatter = (found - truth).square().mean(0).sqrt()
    # the amplitude by which coefficients are divided is blurred too
    expected = (1 + truth**2).sqrt() / 20
    assert float((scatter / expected - 1).abs().max()) < 0.2


def test_a_poor_spectrum_is_not_blurred_further(encoder, galaxy):
    flux, _, weight = galaxy
    sharp, blunt = (
        encode(encoder, flux, weights(weight / 1e4), conditions(), c) for c in (SHARP, 30)
    )
    change = (blunt - sharp)[0, :N_COEFFICIENTS].double()
    spread = sharp[0, N_COEFFICIENTS:-7].double().exp()
    assert float((change / spread).abs().max()) < 0.5
    torch.testing.assert_close(
        blunt[0, N_COEFFICIENTS:-7], sharp[0, N_COEFFICIENTS:-7], atol=0.05, rtol=0
    )


def test_the_views_of_pixels_are_those_of_the_rest_grid(encoder, galaxy):
    """Functionals at the grid's own pixels give the features of `encode`."""
    flux, _, weight = galaxy
    w = weights(weight, range(12, 44))
    per_pixel = torch.repeat_interleave(w[0], flux.shape[1] // N_SEGMENTS)
    level = calc_level(flux, per_pixel[None] * encoder.use)
    v = encoder.at(rest_grid())[0] * per_pixel.sqrt()[:, None] * level
    information, y = v.T @ v, flux[0] * per_pixel.sqrt()
    snr = (
        (per_pixel * encoder.use).sum().sqrt() / (per_pixel * encoder.use > 0).sum().sqrt() * level
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding_module, "MAX_SNR", SHARP)
        features = encoder.features(
            information[None], (y @ v - information[0])[None], level, snr,
            (w > 0).double().mean(1), conditions(),
        )  # fmt: skip
    expected = encode(encoder, flux, w, conditions())
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_pixels_off_centre_are_reported_as_a_velocity(encoder):
    wave = rest_grid()[500:900]
    for shift in (-0.3, 0.0, 0.2):
        _, offset = encoder.at(wave * 10.0 ** (shift * LOG_STEP))
        assert offset == pytest.approx(shift * PIXEL_KMS, abs=1e-6)
    _, offset = encoder.at(np.array([1000.0, 20000.0]))
    assert offset == 0.0


def test_finer_pixels_have_the_lines_of_the_rest_grid(simulator, encoder):
    """Velocity dispersions rest on it: spectra at 69 km/s per pixel, seen by the functionals, give
    the coefficients of the simulator's spectrum."""
    state = make_states(1, 41, (0.4, 0.4), (120.0, 120.0), (0.0, 0.0))
    wave = rest_grid()[850] * 10.0 ** (LOG_STEP * (np.arange(3600) - 0.5) / 2)
    luminosity, simulated = observe(simulator, state, 3, wave)
    error = luminosity.mean() / 50
    y, w = to_rest_grid(wave, luminosity, np.full(3600, error**-2))
    per_pixel = w[:, torch.from_numpy(segment_of_pixel())] * encoder.use
    level = calc_level(y, per_pixel)
    v = encoder.at(wave)[0] * level / error
    one = torch.ones(1, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding_module, "MAX_SNR", SHARP)
        information = v.T @ v
        right = torch.from_numpy(luminosity / error) @ v - information[0]
        seen = encoder.features(
            information[None], right[None], level, 50 * one, one, conditions()
        )  # fmt: skip
    expected = encode(encoder, simulated[None].double(), w, conditions())
    spread = seen[0, N_COEFFICIENTS:-7].exp()
    pull = (seen - expected)[0, :N_COEFFICIENTS] / spread
    assert float(pull.abs().max()) < 0.5


def test_functionals_are_zero_outside_the_grid_and_on_lines(encoder):
    lines = rest_grid()[~calc_line_mask(rest_grid())]
    outside = np.array([2000.0, 2390.0, 9300.0])
    assert float(encoder.at(np.concatenate([outside, lines]))[0].abs().max()) == 0.0
    between = rest_grid()[700] * 10.0 ** (np.array([-0.4, 0.4]) * LOG_STEP)
    assert torch.equal(encoder.at(between)[0], encoder.basis[[700, 700]])


def test_weights_survive_the_artifact(encoder, galaxy):
    flux, _, weight = galaxy
    again = Encoder.from_weights(encoder.to_weights())
    torch.testing.assert_close(
        encode(again, flux, weights(weight), conditions()),
        encode(encoder, flux, weights(weight), conditions()),
        rtol=1e-3, atol=2e-3,
    )  # fmt: skip
    assert again.n_features == encoder.n_features == 2 * N_COEFFICIENTS + 7


# ---- from an observation to the rest grid -------------------------------------------------------


def observe(simulator, state, node, wave):
    """(flux of the forward model as a luminosity, the simulator's) of a state [1, 131]."""
    z = float(simulator.redshifts[node])
    model = ForwardModel(load_grid(), wave * (1 + z), z, bins=BINS)
    factor = calc_flux_factor(
        z, BINS.luminosity_distance_cm(z), load_grid().solar_luminosity
    )  # fmt: skip
    luminosity = (calc_exact_flux(state, model)[0] / factor).numpy()
    x, u = state[:, :128].view(1, 2, 64).float(), state[:, 128:].float()
    return luminosity, simulator.spectra(x, torch.tensor([node]), u, torch.zeros(1))[0]


@pytest.mark.parametrize(
    ("node", "a_v", "sigma_v", "velocity"),
    [(1, 0.0, 80.0, 0.0), (3, 0.4, 150.0, 20.0), (5, 1.5, 300.0, -250.0)],
)
def test_a_forward_model_spectrum_on_the_rest_grid_is_the_simulators(
    simulator, node, a_v, sigma_v, velocity
):
    state = make_states(1, 40 + node, (a_v, a_v), (sigma_v, sigma_v), (velocity, velocity))
    wave = 3560.0 * 10.0 ** (1e-4 * np.arange(3600))
    luminosity, simulated = observe(simulator, state, node, wave)
    y, w = to_rest_grid(wave, luminosity, np.ones(3600))
    covered = torch.repeat_interleave(w[0] > 0, y.shape[1] // N_SEGMENTS).numpy()
    use = covered & calc_line_mask(rest_grid())
    assert use.sum() > 1500
    ratio = y[0].numpy()[use] / simulated.numpy()[use] - 1
    assert np.abs(ratio).max() < 0.02
    assert np.sqrt((ratio**2).mean()) < 0.003
    assert abs(ratio.mean()) < 5e-4


def test_the_information_of_the_pixels_is_kept():
    """Two observed pixels per rest pixel: twice the inverse variance; holes reduce it."""
    edges = rest_grid().reshape(N_SEGMENTS, -1)
    wave = edges[5, 0] * 10.0 ** (1e-4 * (np.arange(2 * 61 * 12) - 0.5))
    flux, ivar = np.ones_like(wave), np.full_like(wave, 4.0)
    _, full = to_rest_grid(wave, flux, ivar)
    inside = full[0, 5:17]
    np.testing.assert_allclose(inside, 8.0, rtol=0.05)
    assert float(full.sum() - inside.sum()) == 0.0
    ivar[2 * 61 * 6 : 2 * 61 * 6 + 36] = 0.0
    _, holed = to_rest_grid(wave, flux, ivar)
    lost = (full - holed)[0]
    assert float(lost[11]) > 1.0
    assert float(lost.sum() - lost[11]) == pytest.approx(0.0, abs=1e-9)


def test_pixels_without_data_are_not_read():
    wave = rest_grid()[600:2400]
    rng = np.random.default_rng(4)
    flux, ivar = rng.uniform(1, 2, 1800), np.where(rng.random(1800) < 0.1, 0.0, 1.0)
    changed = np.where(ivar > 0, flux, np.nan)
    for before, after in zip(
        to_rest_grid(wave, flux, ivar), to_rest_grid(wave, changed, ivar), strict=True
    ):
        assert torch.equal(before, after)


def test_pixels_coarser_than_the_rest_grid_count_too():
    wave = rest_grid()[300] * 10.0 ** (3 * LOG_STEP * np.arange(600))
    flux = wave / 5000.0
    y, w = to_rest_grid(wave, flux, np.ones(600))
    used = torch.repeat_interleave(w[0] > 0, y.shape[1] // N_SEGMENTS).numpy()
    assert used.sum() > 1600
    np.testing.assert_allclose(y[0].numpy()[used], rest_grid()[used] / 5000.0, rtol=0.003)
    # a third of the rest pixels hold data: so does the information
    assert float(w[0][w[0] > 0].median()) == pytest.approx(1 / 3, abs=0.03)


def test_no_data_means_no_weight():
    y, w = to_rest_grid(rest_grid(), np.ones(len(rest_grid())), np.zeros(len(rest_grid())))
    assert float(w.abs().max()) == float(y.abs().max()) == 0.0


@pytest.mark.parametrize("cut", [0, 6, 15, 25, 40])
def test_where_the_spectrum_ends_does_not_move_the_features(simulator, encoder, cut):
    """Beyond its last pixel nothing is known: no made-up flux may count there."""
    state = make_states(1, 41, (0.4, 0.4), (150.0, 150.0), (0.0, 0.0))
    x, u = state[:, :128].view(1, 2, 64).float(), state[:, 128:].float()
    truth = simulator.spectra(x, torch.tensor([3]), u, torch.zeros(1)).double()
    edges = rest_grid().reshape(N_SEGMENTS, -1)
    inside = (rest_grid() >= edges[16, cut]) & (rest_grid() <= edges[44, -1 - cut])
    weight = float((50 / truth[0, 1000:2600].median()) ** 2)
    assert calc_shift(encoder, truth, np.where(inside, weight, 0.0)) < 1.0


def test_sky_bands_do_not_move_the_features(simulator, encoder):
    state = make_states(1, 41, (0.4, 0.4), (150.0, 150.0), (0.0, 0.0))
    x, u = state[:, :128].view(1, 2, 64).float(), state[:, 128:].float()
    truth = simulator.spectra(x, torch.tensor([3]), u, torch.zeros(1)).double()
    use = calc_sky_mask(rest_grid() * (1 + simulator.redshifts[3]))
    weight = float((50 / truth[0, 1000:2600].median()) ** 2)
    assert calc_shift(encoder, truth, np.where(use, weight, 0.0)) < 2.0


def calc_shift(encoder, truth, ivar):
    """chi² by which holes move the coefficients, against the same weights on the whole truth."""
    y, w = to_rest_grid(rest_grid(), truth[0].numpy(), ivar)
    assert int((w > 0).sum()) > 20
    seen, spread, _ = split(encode(encoder, y, w, conditions()))
    whole, _, _ = split(encode(encoder, truth, w, conditions()))
    return float((((seen - whole) / spread.exp()) ** 2).sum())
