"""Mock observations with known truth, on which posteriors are checked.

Every random number of a mock is drawn from the prior that the fit uses, or rank statistics mean
nothing:

    history        the test split of a prior's training population, drawn without replacement
    u              standard normal: A_V, sigma_v and velocity in `likelihood.nuisance`
    calibration    c_n ~ N(0, 0.02); the noiseless spectrum is multiplied by 1 + sum c_n P_n(t)
    error scale    ln f ~ N(0, 0.3): the file's errors are sigma(wave), the noise is f sigma

The bundled file holds what cannot be computed again: histories, nuisance values, redshift, S/N
and the seed of the noise. Spectra are made when needed, with the grid the fit uses. A mock is an
ordinary `Spectrum`, so that masks and preparation are tested with the rest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfhzoo import histories
from sfhzoo.errors import ArtifactError, DataError
from sfhzoo.forward.csp import calc_metallicity_weights, calc_surviving_fraction
from sfhzoo.forward.model import COARSE_FWHM, ForwardModel
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.calibration import MAX_AUTO_ORDER, calc_calibration_rows, choose_order
from sfhzoo.likelihood.nuisance import ERROR_SCALE_SPREAD
from sfhzoo.likelihood.problem import CALIBRATION_RMS
from sfhzoo.posterior import Observed, Parameter, Posterior
from sfhzoo.spectra.masks import build_mask
from sfhzoo.spectra.spectrum import Spectrum
from sfhzoo.zoo.artifacts import BUNDLED, sha256_of

if TYPE_CHECKING:
    from sfhzoo.grids.ssp import SSPGrid
    from sfhzoo.simulations.trainingset import TrainingSet
    from sfhzoo.timebins import TimeBins

Array = NDArray[np.float64]

BUNDLED_MOCKS = BUNDLED / "mocks-diffstarpop-tng-v1.safetensors"
WAVE_OBS = 10.0 ** np.arange(3.58, 3.964, 1e-4)
"""vacuum Å, [wave] of SDSS"""


@dataclass(frozen=True)
class MockSet:
    """What the mocks of one set share: ranges are uniform in redshift, log-uniform in S/N."""

    name: str
    n: int
    redshift: tuple[float, float]
    snr: tuple[float, float]
    fixed: bool = False
    """A_V 0.2, sigma_v 150, everything else as the file says: not drawn from the fit's priors"""


BANDS = ("S/N 5-15", "S/N 15-40", "S/N 40-100")
SURVEY = (0.02, 0.2)
SETS = (
    MockSet(BANDS[0], 210, SURVEY, (5.0, 15.0)),
    MockSet(BANDS[1], 210, SURVEY, (15.0, 40.0)),
    MockSet(BANDS[2], 210, SURVEY, (40.0, 100.0)),
    MockSet("redshift 0.004", 50, (0.004, 0.004), (5.0, 100.0)),
    MockSet("redshift 0.67", 50, (0.67, 0.67), (5.0, 100.0)),
    MockSet("redshift 1.04", 50, (1.04, 1.04), (5.0, 100.0)),
    MockSet("fixed nuisance, S/N 50", 60, SURVEY, (50.0, 50.0), fixed=True),
)
FIXED_A_V, FIXED_SIGMA_V = 0.2, 150.0


@dataclass(frozen=True)
class Mock:
    """One mock observation.

    sfr, logzsol : [bin] Msun/yr and log10(Z/Z_sun)
    u : [3] nuisance coordinates; calibration : [8] c_1 ... c_8, those beyond the order unused
    error_scale : the noise over the file's errors
    snr : median of noiseless flux over the file's error
    draw : its number among the mocks drawn with its seed; the fit's random numbers follow from it
    """

    number: int
    set: str
    sfr: Array
    logzsol: Array
    u: Array
    calibration: Array
    error_scale: float
    redshift: float
    snr: float
    seed: int
    draw: int


@dataclass(frozen=True)
class MockFile:
    """All mocks of a file, in its order, and where they came from."""

    mocks: tuple[Mock, ...]
    attributes: dict[str, Any]
    sha256: str

    def select(self, n: int | None = None, bands_only: bool = False) -> tuple[Mock, ...]:
        """The first mocks of each set in equal shares, about `n` of the bands; None = all."""
        chosen = [s for s in SETS if s.name in BANDS or not bands_only]
        in_bands = sum(s.n for s in SETS if s.name in BANDS)
        counts = {
            s.name: len(self.mocks) if n is None else round(n / in_bands * s.n) for s in chosen
        }
        taken = dict.fromkeys(counts, 0)
        picked = []
        for mock in self.mocks:
            if taken.get(mock.set, 0) < counts.get(mock.set, 0):
                taken[mock.set] += 1
                picked.append(mock)
        return tuple(picked)


# ---- the file -----------------------------------------------------------------------------------


def make(
    data: TrainingSet,
    path: Path,
    seeds: tuple[int, ...] = (20261122,),
    mock_sets: tuple[MockSet, ...] = SETS,
) -> Path:
    """Draw all mocks from the test split of a training set and write the file; bit for bit.

    Parameters
    ----------
    seeds : each after the first adds as many mocks to the S/N bands, but for galaxies that the
        file has already

    Raises DataError when the split has fewer galaxies than there are mocks of one seed.
    """
    from safetensors.numpy import save_file

    parts: list[dict[str, NDArray[Any]]] = []
    taken = np.zeros(0, int)
    bands = [k for k, s in enumerate(mock_sets) if s.name in BANDS]
    for seed in seeds:
        part = _draw_all(data, seed, mock_sets)
        keep = ~np.isin(part["row"], taken)
        if parts:
            keep &= np.isin(part["set"], bands)
        parts.append({key: values[keep] for key, values in part.items()})
        taken = np.concatenate([taken, parts[-1]["row"]])
    arrays = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
    attributes = {
        "training_set": {"name": data.attributes["name"], "sha256": data.sha256},
        "sets": [s.name for s in mock_sets],
        "seeds": list(seeds),
        "calibration_rms": CALIBRATION_RMS,
        "error_scale_spread": ERROR_SCALE_SPREAD,
    }
    # one key, as safetensors does not keep the order of several
    text = json.dumps(attributes, sort_keys=True)
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path, {"mocks": text})
    path.chmod(0o644)
    return path


def _draw_all(
    data: TrainingSet, seed: int, mock_sets: tuple[MockSet, ...]
) -> dict[str, NDArray[Any]]:
    """The file's arrays [mock, ...] of one seed; no two mocks share a galaxy."""
    sfr, logzsol = data.histories("test")
    sets = np.repeat(np.arange(len(mock_sets)), [s.n for s in mock_sets])
    if len(sfr) < len(sets):
        raise DataError(
            f"expected at least {len(sets)} test galaxies, as no two mocks share one, got "
            f"{len(sfr)} in {data.attributes['name']}; build it again with a larger n_test"
        )
    row = np.random.default_rng(seed).permutation(len(sfr))[: len(sets)]
    drawn = [_draw(mock_sets[k], seed, i) for i, k in enumerate(sets)]
    arrays = {key: np.stack([np.asarray(d[key]) for d in drawn]) for key in drawn[0]}
    draw = np.arange(len(sets))
    return {**arrays, "sfr": sfr[row], "logzsol": logzsol[row], "set": sets, "row": row,
            "draw": draw}  # fmt: skip


def _draw(of: MockSet, seed: int, number: int) -> dict[str, Any]:
    """Every random number of a mock from a generator of its own."""
    rng = np.random.default_rng([seed, number])
    redshift = of.redshift[0] + rng.random() * (of.redshift[1] - of.redshift[0])
    snr = of.snr[0] * (of.snr[1] / of.snr[0]) ** rng.random()
    u = rng.standard_normal(nuisance.N_NUISANCE)
    calibration = CALIBRATION_RMS * rng.standard_normal(MAX_AUTO_ORDER)
    log_scale = ERROR_SCALE_SPREAD * rng.standard_normal()
    if of.fixed:
        values = (torch.tensor(v, dtype=torch.float64) for v in (FIXED_A_V, FIXED_SIGMA_V, 0.0))
        u = nuisance.to_coordinates(*values).numpy()
        calibration, log_scale = np.zeros_like(calibration), 0.0
    return {
        "redshift": redshift,
        "snr": snr,
        "u": u,
        "calibration": calibration,
        "error_scale": np.exp(log_scale),
        "seed": rng.integers(2**62),
    }


def load(path: Path = BUNDLED_MOCKS) -> MockFile:
    """Read a file of mocks; ArtifactError when it is not one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as f:
            attributes = json.loads(f.metadata()["mocks"])
            a = {k: f.get_tensor(k) for k in f.keys()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
        raise ArtifactError(f"expected a file of mocks at {path}: {e}") from e
    mocks = tuple(
        Mock(
            number=i, set=attributes["sets"][a["set"][i]],
            sfr=a["sfr"][i].astype(float), logzsol=a["logzsol"][i].astype(float),
            u=a["u"][i], calibration=a["calibration"][i], error_scale=float(a["error_scale"][i]),
            redshift=float(a["redshift"][i]), snr=float(a["snr"][i]), seed=int(a["seed"][i]),
            draw=int(a["draw"][i]) if "draw" in a else i,
        )
        for i in range(len(a["set"]))
    )  # fmt: skip
    return MockFile(mocks, attributes, sha256_of(path))


# ---- the observation ----------------------------------------------------------------------------


def calc_error_shape(wave_obs: Array) -> Array:
    """Errors [wave] of a flat spectrum up to a factor: worse at the blue and the red end."""
    blue = 2.0 * np.exp(-(wave_obs - WAVE_OBS[0]) / 300.0)
    red = 0.8 * (np.clip(wave_obs - 7500.0, 0.0, None) / 1700.0) ** 2
    return 1.0 + blue + red


def calc_lsf_sigma(wave_obs: Array) -> Array:
    """Line-spread function [wave] (km/s) as of SDSS: 75 at the blue end, 60 at the red end."""
    return np.interp(wave_obs, WAVE_OBS[[0, -1]], (75.0, 60.0))


def calc_used(spectrum: Spectrum, redshift: float, grid: SSPGrid) -> NDArray[np.bool_]:
    """Pixels [wave] that the fit uses by default."""
    mask, _ = build_mask(spectrum, redshift)
    rest = spectrum.wave_obs / (1 + redshift)
    fwhm = np.interp(rest, grid.wave, grid.resolution_fwhm)
    return mask & (rest >= grid.wave[1]) & (rest <= grid.wave[-2]) & (fwhm < COARSE_FWHM)


def make_spectrum(mock: Mock, grid: SSPGrid, bins: TimeBins) -> Spectrum:
    """The mock as a survey would deliver it; the same mock and grid give the same numbers."""
    wave, lsf = WAVE_OBS, calc_lsf_sigma(WAVE_OBS)
    model = ForwardModel(grid, wave, mock.redshift, lsf_sigma=lsf, bins=bins)
    sfr, logzsol, u = (torch.from_numpy(a) for a in (mock.sfr, mock.logzsol, mock.u))
    flux = model(sfr, logzsol, *nuisance.to_physical(u)).numpy()
    error = calc_error_shape(wave)
    error *= np.median(flux / error) / mock.snr
    noise = mock.error_scale * error * np.random.default_rng(mock.seed).standard_normal(len(wave))
    plain = Spectrum(wave, flux, error**-2, lsf_sigma=lsf, redshift=mock.redshift)
    used = wave[calc_used(plain, mock.redshift, grid)]
    order = choose_order(used)
    rows = calc_calibration_rows(wave, (used[0], used[-1]), order)
    observed = flux * (1 + mock.calibration[:order] @ rows) + noise
    return Spectrum(
        wave, observed, error**-2, lsf_sigma=lsf, redshift=mock.redshift,
        name=f"mock-{mock.number:04d}",
    )  # fmt: skip


def calc_truth(mock: Mock, grid: SSPGrid, bins: TimeBins) -> dict[str, float]:
    """The true value of every quantity a posterior has, by the posterior's own formulas."""
    now = bins.age_at(mock.redshift)
    fraction = torch.from_numpy(calc_surviving_fraction(grid, bins, now))
    nodes = torch.from_numpy(grid.logzsol[grid.valid])
    weights = calc_metallicity_weights(torch.from_numpy(mock.logzsol), nodes)
    formed = histories.calc_mass_formed_per_bin(mock.sfr, bins, now)
    physical = nuisance.to_physical(torch.from_numpy(mock.u))
    values = {
        "a_v": float(physical.a_v),
        "sigma_v": float(physical.sigma_v),
        "velocity_offset": float(physical.velocity),
        "error_scale": mock.error_scale,
    }
    none = np.zeros(2)
    truth = Posterior(
        sfr=mock.sfr[None],
        logzsol=mock.logzsol[None],
        parameters={k: Parameter(np.array([v]), "", "") for k, v in values.items()},
        mass_surviving=np.array([formed @ (weights * fraction).sum(-1).numpy()]),
        bins=bins,
        redshift=mock.redshift,
        model_flux=none[None],
        observed=Observed(none, none, none, none > 0),
    )
    return {name: float(v[0]) for name, (v, _) in truth.quantities().items()}
