"""The forward model: closed forms, published values, and mocks made by BAGPIPES.

`data/bagpipes_mocks.npz` holds two galaxies made with BAGPIPES 1.3.6 (R_spec 20000,
FlatLambdaCDM(70, 0.3)), each with sigma_v = 0 and 150 km/s: rest wavelengths (air Å, of which
`wave` = (1 + z) times), noiseless fluxes integrated over all 221 ages (erg/s/cm²/Å), the mass
formed in our 64 bins (Msun), and (redshift, A_V, Z).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM
from fakegrid import LINE, REDSHIFT, WAVE_OBS, make_grid
from numpy.typing import NDArray

import sfhzoo
from sfhzoo.errors import DataError
from sfhzoo.forward.csp import calc_metallicity_weights, calc_surviving_fraction
from sfhzoo.forward.model import ForwardModel, calc_spectrum
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.timebins import TimeBins
from sfhzoo.units import SPEED_OF_LIGHT
from sfhzoo.wavelengths import calc_vacuum_from_air

BUNDLED = Path(sfhzoo.__file__).parent / "data" / "bc03-miles-v1.zarr.zip"
MOCKS = Path(__file__).parent / "data" / "bagpipes_mocks.npz"


@pytest.fixture(scope="module")
def grid() -> SSPGrid:
    return make_grid()


@pytest.fixture(scope="module")
def model(grid: SSPGrid) -> ForwardModel:
    return ForwardModel(grid, WAVE_OBS, REDSHIFT)


def make_histories(n: int = 3, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sfr = 10 * torch.rand(n, 64, generator=generator, dtype=torch.float64)
    logzsol = 2.4 * torch.rand(n, 64, generator=generator, dtype=torch.float64) - 1.9
    return sfr, logzsol


def measure_line(wave: NDArray[np.float64], flux: NDArray[np.float64]) -> tuple[float, float]:
    """Centre and sigma (km/s about 5000 Å) of the absorption line, by moments."""
    velocity = SPEED_OF_LIGHT * np.log(wave / LINE)
    # narrow, so that the curvature of the continuum does not count
    near = np.abs(velocity) < 1500
    continuum = np.interp(wave, wave[near][[0, -1]], flux[near][[0, -1]])
    depth = (1 - flux / continuum)[near]
    centre = np.average(velocity[near], weights=depth)
    return centre, np.sqrt(np.average((velocity[near] - centre) ** 2, weights=depth))


# ---- lines


def test_the_models_lines_get_the_instruments_width_then_the_stars(grid: SSPGrid) -> None:
    model = ForwardModel(grid, WAVE_OBS, REDSHIFT, lsf_sigma=120.0)
    templates = model.at(0.0, 200.0, 60.0).numpy()
    rest = WAVE_OBS / (1 + REDSHIFT)
    centre, width = measure_line(rest, templates[10, 1])
    pixel = SPEED_OF_LIGHT * np.log(WAVE_OBS[1] / WAVE_OBS[0])
    expected = np.sqrt(120.0**2 + 200.0**2 + pixel**2 / 12)
    assert width == pytest.approx(expected, rel=0.01)
    assert centre == pytest.approx(60, abs=1.5)
    assert model.lsf_clipped_fraction == 0


def test_an_instrument_sharper_than_the_grid_is_counted_and_keeps_the_grids_lines(
    grid: SSPGrid,
) -> None:
    lsf = np.where(WAVE_OBS < 5000, 20.0, 90.0)
    model = ForwardModel(grid, WAVE_OBS, REDSHIFT, lsf_sigma=lsf)
    assert model.lsf_clipped_fraction == pytest.approx(np.mean(WAVE_OBS < 5000))
    sharp = ForwardModel(grid, WAVE_OBS, REDSHIFT, lsf_sigma=0.0)
    own = ForwardModel(grid, WAVE_OBS, REDSHIFT)
    assert sharp.lsf_clipped_fraction == 1
    assert torch.allclose(sharp.templates, own.templates, rtol=1e-12, atol=0)


# ---- the whole model


def test_the_spectrum_is_linear_in_the_star_formation_rate(model: ForwardModel) -> None:
    sfr, logzsol = make_histories()
    whole = model(sfr, logzsol, 0.3, 150.0)
    part = torch.rand(3, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts = model(sfr * part, logzsol, 0.3, 150.0) + model(sfr * (1 - part), logzsol, 0.3, 150.0)
    assert whole.shape == (3, len(WAVE_OBS))
    assert torch.allclose(whole, parts, rtol=1e-9, atol=0)


def test_the_fast_path_gives_the_models_spectrum(model: ForwardModel) -> None:
    sfr, logzsol = make_histories()
    fast = calc_spectrum(sfr, logzsol, model.at(0.4, 180.0, 20.0), model.nodes)
    assert torch.allclose(fast, model(sfr, logzsol, 0.4, 180.0, 20.0), rtol=1e-9, atol=0)


def test_a_batch_gives_what_its_members_give(model: ForwardModel) -> None:
    sfr, logzsol = make_histories()
    a_v, sigma_v = (
        torch.tensor([0.1, 0.8, 0.0], dtype=torch.float64),
        torch.tensor([80.0, 0.0, 250.0]),
    )
    batch = model(sfr, logzsol, a_v, sigma_v, sigma_v / 10)
    for i in range(3):
        one = model(sfr[i], logzsol[i], float(a_v[i]), float(sigma_v[i]), float(sigma_v[i]) / 10)
        assert torch.allclose(batch[i], one, rtol=1e-9, atol=0)
    assert torch.allclose(model.at(a_v, sigma_v)[1], model.at(0.8, 0.0), rtol=1e-9, atol=0)


def test_gradients_agree_with_finite_differences(model: ForwardModel) -> None:
    sfr, logzsol = make_histories(1)
    logzsol = 0.3 * logzsol - 0.2
    inputs = [
        sfr[0],
        logzsol[0],
        torch.tensor(0.3).double(),
        torch.tensor(150.0).double(),
        torch.tensor(30.0).double(),
    ]
    inputs = [v.clone().requires_grad_() for v in inputs]
    flux = model(*inputs)
    scale = 1 / flux.detach()

    def few(*arguments: torch.Tensor) -> torch.Tensor:
        return (model(*arguments) * scale)[[200, 700, 701, 710, 1300]]

    assert torch.autograd.gradcheck(few, inputs, eps=1e-5, atol=1e-7, rtol=1e-4, fast_mode=False)


def test_the_future_does_not_shine(grid: SSPGrid) -> None:
    model = ForwardModel(grid, 2 * WAVE_OBS, 1.2)
    sfr, logzsol = make_histories(1)
    changed = sfr.clone()
    changed[:, model.bins.edges[:-1] > model.cosmic_time] *= 100
    assert torch.equal(model(sfr, logzsol, 0.0, 100.0), model(changed, logzsol, 0.0, 100.0))


def test_single_precision_is_good_to_a_part_in_ten_thousand(
    grid: SSPGrid, model: ForwardModel
) -> None:
    sfr, logzsol = make_histories()
    single = ForwardModel(grid, WAVE_OBS, REDSHIFT, dtype=torch.float32)
    flux = single(sfr, logzsol, 0.3, 150.0)
    assert flux.dtype == torch.float32
    assert torch.allclose(flux.double(), model(sfr, logzsol, 0.3, 150.0), rtol=1e-4, atol=0)


def test_pixels_outside_the_grid_or_without_lines_are_reported() -> None:
    bundled = SSPGrid.read(BUNDLED)
    wave = np.geomspace(8000.0, 10_000.0, 500)
    model = ForwardModel(bundled, wave, 0.004)
    assert model.covered.all()
    assert np.array_equal(model.coarse, wave / 1.004 > wave[model.coarse][0] / 1.004 - 1e-6)
    assert 8740 < wave[model.coarse][0] / 1.004 < 8775
    outside = ForwardModel(make_grid(), np.geomspace(2500.0, 5000.0, 300), 0.01)
    assert not outside.covered[0] and outside.covered[-1]
    with pytest.raises(DataError, match="wavelength units"):
        ForwardModel(make_grid(), np.linspace(0.4, 0.9, 300), 0.01)


@pytest.mark.parametrize(
    ("wave", "lsf"),
    [
        ([5000.0], None),
        ([5000.0, np.nan], None),
        ([5001.0, 5000.0], None),
        ([-1.0, 5000.0], None),
        (WAVE_OBS, -5.0),
        (WAVE_OBS, np.nan),
        (WAVE_OBS, [70.0, 70.0]),
    ],
)
def test_pixels_and_lsf_that_make_no_sense_are_refused(grid: SSPGrid, wave: Any, lsf: Any) -> None:
    with pytest.raises(DataError, match="expected"):
        ForwardModel(grid, wave, REDSHIFT, lsf_sigma=lsf)


def test_age_and_distance_come_from_one_cosmology(grid: SSPGrid) -> None:
    flat = FlatLambdaCDM(70, 0.3)
    model = ForwardModel(grid, WAVE_OBS, REDSHIFT, cosmology=flat)
    assert model.cosmic_time == pytest.approx(flat.age(REDSHIFT).value)
    planck = ForwardModel(grid, WAVE_OBS, REDSHIFT)
    assert planck.cosmic_time == pytest.approx(12.71, abs=0.05)
    with pytest.raises(ValueError, match="one cosmology"):
        ForwardModel(grid, WAVE_OBS, REDSHIFT, bins=TimeBins(flat), cosmology="Planck15")


# ---- parity with BAGPIPES


@pytest.mark.parametrize("sigma_v", [0, 150])
@pytest.mark.parametrize("galaxy", ["delayedtau", "constant"])
@pytest.mark.parametrize(
    ("interpolation", "shape", "level"), [("linear", 0.004, 0.005), ("log", 0.01, 0.03)]
)
def test_bagpipes_mocks_are_reproduced_at_their_true_parameters(
    galaxy: str, sigma_v: int, interpolation: Any, shape: float, level: float
) -> None:
    with np.load(MOCKS) as file:
        mock = {k.removeprefix(f"{galaxy}_"): file[k] for k in file if k.startswith(galaxy)}
    redshift, a_v, metals = mock["truth"]
    rest_air = mock["wave_rest_air"]
    bins = TimeBins(FlatLambdaCDM(70, 0.3))
    model = ForwardModel(
        SSPGrid.read(BUNDLED, wave_range=(3000.0, 8000.0)),
        calc_vacuum_from_air(rest_air) * (1 + redshift),
        redshift,
        bins=bins,
        interpolation=interpolation,
    )
    overlap = 1e9 * bins.overlap(model.cosmic_time)
    sfr = np.divide(mock["mass_formed"], overlap, out=np.zeros(64), where=overlap > 0)
    logzsol = torch.full((64,), float(np.log10(metals / 0.0142)), dtype=torch.float64)
    flux = model(torch.as_tensor(sfr), logzsol, float(a_v), float(sigma_v)).numpy()
    use = (rest_air > 3600) & (rest_air < 7300)
    ratio = (flux / mock[f"flux_{sigma_v}"])[use]
    assert ratio.mean() == pytest.approx(1, abs=level)
    assert ratio.std() / ratio.mean() < shape


@pytest.mark.parametrize("galaxy", ["delayedtau", "constant"])
def test_bagpipes_living_stellar_mass_is_reproduced(galaxy: str) -> None:
    with np.load(MOCKS) as file:
        redshift, _, metals = file[f"{galaxy}_truth"]
        mass, living = file[f"{galaxy}_mass_formed"], file[f"{galaxy}_log_mass_living"]
    grid = SSPGrid.read(BUNDLED, wave_range=(5000.0, 5100.0))
    bins = TimeBins(FlatLambdaCDM(70, 0.3))
    fraction = calc_surviving_fraction(grid, bins, bins.age_at(redshift))
    nodes = torch.as_tensor(grid.logzsol[grid.valid])
    weights = calc_metallicity_weights(torch.as_tensor(np.log10(metals / 0.0142)), nodes)
    assert np.log10(mass @ fraction @ weights.numpy()) == pytest.approx(float(living), abs=0.01)
