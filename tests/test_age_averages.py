"""Time averages of SSPs over the bins: against brute force, and against the published ages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sfhzoo
from sfhzoo.forward.csp import calc_age_weights, calc_bin_templates
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.timebins import TimeBins

BUNDLED = Path(sfhzoo.__file__).parent / "data" / "bc03-miles-v1.zarr.zip"
BINS = TimeBins()
N_BRUTE = 100_000


@pytest.fixture(scope="module")
def grid() -> SSPGrid:
    """The bundled grid at 120 wavelengths from the ultraviolet to the near infrared."""
    whole = SSPGrid.read(BUNDLED, wave_range=(1200.0, 25_000.0))
    keep = np.unique(np.searchsorted(whole.wave, np.geomspace(1250.0, 24_000.0, 120)))
    return replace(
        whole,
        wave=whole.wave[keep],
        flux=np.ascontiguousarray(whole.flux[..., keep]),
        resolution_fwhm=whole.resolution_fwhm[keep],
    )


def interpolate(grid: SSPGrid, node: int, ages: np.ndarray) -> np.ndarray:
    """SSPs [age, wave], linear in log age, constant below the youngest."""
    flux = grid.flux[node].astype(float)
    columns = [np.interp(np.log(ages), np.log(grid.age), column) for column in flux.T]
    return np.stack(columns, axis=1)


def integrate(grid: SSPGrid, node: int, cosmic_time: float) -> np.ndarray:
    """Light [bin, wave] by summing over `N_BRUTE` ages, half of them in the last 300 Myr."""
    last = min(0.3, cosmic_time) * 1e9
    edges = np.concatenate(
        [
            np.linspace(0, last, N_BRUTE // 2 + 1),
            np.linspace(last, cosmic_time * 1e9, N_BRUTE // 2),
        ]
    )
    # the bins' own edges cut cells in two, or the cells at the edges would count in one bin only
    edges = np.unique(np.concatenate([edges, BINS.lookback_edges(cosmic_time) * 1e9]))
    ages, length = 0.5 * (edges[1:] + edges[:-1]), np.diff(edges)
    born = cosmic_time - ages * 1e-9
    index = np.clip(np.searchsorted(BINS.edges, born) - 1, 0, BINS.n - 1)
    light = interpolate(grid, node, ages) * length[:, None]
    total = np.zeros((BINS.n, len(grid.wave)))
    np.add.at(total, index, light)
    return total


# of the last bin all, 2 %, half and 0.3 % are over
@pytest.mark.parametrize("cosmic_time", [BINS.age_today, 11.0, 46.5 * BINS.width, 7.9774])
@pytest.mark.parametrize("node", [0, 4])
def test_averages_equal_brute_force_integration(
    grid: SSPGrid, node: int, cosmic_time: float
) -> None:
    found = calc_bin_templates(grid, BINS, cosmic_time)[:, node]
    expected = integrate(grid, node, cosmic_time)
    seen = BINS.overlap(cosmic_time) > 0
    assert np.all(found[~seen] == 0) and np.all(expected[~seen] == 0)
    error = found[seen] / expected[seen] - 1
    assert np.sqrt(np.mean(error**2)) <= 1e-3
    assert np.sqrt(np.mean(error**2, axis=1)).max() <= 1e-3


def publish(grid: SSPGrid, node: int) -> np.ndarray:
    """Light [bin, wave] today from 512 ages evenly spaced from 0 (the youngest) to the age of the
    universe, each bin the mean of the ages that it holds, as in the published model."""
    ages = np.linspace(0.0, BINS.age_today * 1e9, 512)
    ages[0] = grid.age[0]
    spectra = interpolate(grid, node, ages)
    index = np.minimum((ages * 1e-9 / BINS.width).astype(int), BINS.n - 1)
    means = [spectra[index == BINS.n - 1 - k].mean(axis=0) for k in range(BINS.n)]
    return np.array(means) * BINS.width * 1e9


def test_the_published_ages_misjudge_the_youngest_bin_and_little_else(grid: SSPGrid) -> None:
    exact = calc_bin_templates(grid, BINS, BINS.age_today)[:, 4]
    error = publish(grid, 4) / exact - 1
    optical = (grid.wave > 4000) & (grid.wave < 9000)
    assert np.sqrt(np.mean(error[:-2][:, optical] ** 2)) < 0.01
    ultraviolet, blue, infrared = (
        error[-1, (grid.wave > low) & (grid.wave < high)].mean()
        for low, high in ((1250, 3000), (3000, 4000), (9000, 24_000))
    )
    # the youngest SSP stands for 27 Myr
    assert ultraviolet == pytest.approx(0.87, abs=0.05)
    assert blue == pytest.approx(0.41, abs=0.05)
    assert infrared == pytest.approx(-0.22, abs=0.05)


def test_a_grid_stored_at_the_published_ages_is_too_faint_when_young(grid: SSPGrid) -> None:
    ages = np.linspace(0.0, BINS.age_today * 1e9, 512)
    ages[0] = grid.age[0]
    stored = interpolate(grid, 4, ages)
    exact = calc_bin_templates(grid, BINS, BINS.age_today)[:, 4]
    error = calc_age_weights(ages, BINS.lookback_edges(BINS.age_today)) @ stored / exact - 1
    optical = (grid.wave > 4000) & (grid.wave < 9000)
    assert np.abs(error[:-1][:, optical]).max() < 1e-3
    assert error[-1, optical].mean() == pytest.approx(-0.215, abs=0.03)


def test_averages_are_kept_for_a_grid_and_a_time_and_for_no_other(grid: SSPGrid) -> None:
    first = calc_bin_templates(grid, BINS, 9.0)
    assert calc_bin_templates(replace(grid, name="copy"), BINS, 9.0) is first
    assert not first.flags.writeable
    brighter = replace(grid, flux=grid.flux * 2)
    assert np.allclose(calc_bin_templates(brighter, BINS, 9.0), 2 * first)
    fewer = replace(grid, valid=np.arange(7) < 3)
    assert calc_bin_templates(fewer, BINS, 9.0).shape[1] == 3
    assert not np.array_equal(calc_bin_templates(grid, BINS, 9.01), first)
