"""One spectrum through BAGPIPES with its nautilus sampler: the comparison of speed.py.

    python benchmarks/bagpipes_fit.py [SPECTRUM] --out bagpipes.json

Same stellar populations as ours (BC03-MILES), the pixels our masks leave, a double power law, A_V
(Calzetti), sigma_v and an error scale free; redshift fixed, 400 live points and R_spec as BAGPIPES
ships them. Its templates are in air, so the rest wavelengths are converted. Reports CPU seconds,
the number of likelihoods and the posterior; BAGPIPES' cosmology (H0 = 70) gives masses 0.028 dex
below Planck15. Needs bagpipes and nautilus-sampler.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import sfhzoo
from sfhzoo.cli.infer import EXAMPLE
from sfhzoo.spectra.masks import build_mask
from sfhzoo.wavelengths import calc_air_from_vacuum

REPORTED = ("mass_weighted_age", "dust:Av", "veldisp", "dblplaw:massformed",
            "dblplaw:metallicity", "stellar_mass", "noise:scaling")  # fmt: skip
REST_RANGE = (3540.0, 7349.0)
"""Å; BAGPIPES carries no line-spread function, and this is where MILES is evenly sharp."""


def load_pixels(path: str) -> tuple[np.ndarray, float]:
    """[wave, (wavelength, flux, error)] of the pixels in use, and the redshift."""
    spectrum = sfhzoo.Spectrum.read(path)
    redshift = float(spectrum.redshift or 0.0)
    used, _ = build_mask(spectrum, redshift)
    rest = calc_air_from_vacuum(spectrum.wave_obs / (1 + redshift))
    used &= (rest > REST_RANGE[0]) & (rest < REST_RANGE[1])
    columns = (rest * (1 + redshift), spectrum.flux, 1 / np.sqrt(np.where(used, spectrum.ivar, 1)))
    return np.stack(columns, axis=1)[used], redshift


def fit(path: str, live: int) -> dict[str, Any]:
    """Fit and report."""
    import bagpipes

    pixels, redshift = load_pixels(path)
    galaxy = bagpipes.galaxy(
        "object", lambda _: pixels, photometry_exists=False, spectrum_exists=True
    )
    model = {
        "redshift": redshift,
        "dblplaw": {"tau": (0.1, 15.0), "alpha": (0.01, 1000.0), "alpha_prior": "log_10",
                    "beta": (0.01, 1000.0), "beta_prior": "log_10", "massformed": (5.0, 13.0),
                    "metallicity": (0.01, 2.5), "metallicity_prior": "log_10"},
        "dust": {"type": "Calzetti", "Av": (0.0, 4.0)},
        "veldisp": (10.0, 500.0), "veldisp_prior": "log_10",
        "noise": {"type": "white_scaled", "scaling": (0.3, 10.0), "scaling_prior": "log_10"},
    }  # fmt: skip
    run = bagpipes.fit(galaxy, model, run="speed")
    calls = {"n": 0}
    inner = run.fitted_model.lnlike

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        return inner(*args, **kwargs)

    run.fitted_model.lnlike = counted
    cpu, wall = time.process_time(), time.perf_counter()
    run.fit(verbose=False, n_live=live, sampler="nautilus")
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    run.posterior.get_advanced_quantities()
    samples = run.posterior.samples
    found = {k: [float(np.median(samples[k])), float(np.std(samples[k]))]
             for k in REPORTED if k in samples}  # fmt: skip
    return {"spectrum": Path(path).name, "pixels": len(pixels), "redshift": redshift,
            "cpu_seconds": cpu, "wall_seconds": wall, "likelihoods": calls["n"],
            "n_live": live, "posterior": found}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("spectrum", nargs="?", default=str(EXAMPLE))
    parser.add_argument("--live", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    spectrum, out = str(Path(args.spectrum).resolve()), args.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # it writes its files where it is started
        result = fit(spectrum, args.live)
        os.chdir(out.parent)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
