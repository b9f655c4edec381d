"""A made-up SPS_HOME on which the Fortran code of FSPS v3.3 (python-fsps 0.4.8) runs for real.

    python tests/sps_home.py DIRECTORY

Names, record lengths and counts are those that `sps_setup.f90` reads; the stars are toys: a power
law of luminosity and radius along the main sequence, a giant branch, Planck spectra with a handful
of lines and breaks. 170 MB, most of it five spectral libraries of MILES's shape; 2 s.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LOG_AGES = np.round(np.arange(5.0, 10.301, 0.05), 2)
FEH = (-2.5, -2.0, -1.75, -1.5, -1.25, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5)
LIBRARY_Z = ("0.0008", "0.0035", "0.0097", "0.0190", "0.0300")
LOG_T = np.log10(np.concatenate([[2000.0, 2200.0, 2500.0], np.geomspace(2800, 50_000, 65)]))
LOG_G = np.concatenate([[-1.02, -0.7, -0.5, -0.3, 0, 0.3, 0.5, 0.6, 0.9], np.linspace(1, 5.5, 10)])
N_BANDS = 159
PLANCK, LIGHT, BOLTZMANN, STEFAN = 6.62607e-27, 2.99792e18, 1.380649e-16, 5.670374e-5
"""erg s, Å/s, erg/K, erg/s/cm²/K⁴"""

DARK = "1e-40"


def make_wave() -> Array:
    """5994 wavelengths, Å: 0.9 Å steps in the optical as MILES has them."""
    middle = 3530.0 + 0.9 * np.arange(4421)
    red = np.geomspace(7520.0, 1e8, 5994 - 357 - len(middle))
    return np.concatenate([np.geomspace(91.0, 3520.0, 357), middle, red])


def calc_planck(wave: Array, temperature: Array) -> Array:
    """B_nu, erg/s/cm²/Hz/sr."""
    nu = LIGHT / wave
    x = np.minimum(PLANCK * nu / (BOLTZMANN * temperature), 600.0)
    return 2 * PLANCK * nu**3 / (LIGHT * 1e-8) ** 2 / np.expm1(x)


def calc_stars(wave: Array, log_t: Array, feh: float) -> Array:
    """Spectra [temperature, wave], H_nu, whose integral over 4π is σT⁴."""
    t = 10.0 ** log_t[:, None]
    cool = 1 / (1 + np.exp((log_t[:, None] - 3.8) / 0.03))
    warm = np.exp(-(((log_t[:, None] - 3.97) / 0.12) ** 2))

    def line(centre: float, width: float) -> Array:
        return np.exp(-0.5 * ((wave - centre) / width) ** 2)

    balmer = sum(line(c, 13.0) for c in (6564.6, 4862.7, 4341.7, 4102.9, 3971.2, 3890.2))
    metals = sum(
        depth * line(c, width)
        for c, width, depth in (
            (3934.8, 9, 2.0), (3969.6, 9, 1.8), (4228, 6, 0.5), (4304, 14, 0.5), (4384, 6, 0.4),
            (5176, 18, 0.6), (5270, 14, 0.4), (5895, 7, 0.5), (8544, 7, 0.6), (8664, 7, 0.5),
        )
    )  # fmt: skip
    blanketing = 2.0 * np.clip(4000 / wave - 1, 0, 1) + 0.2 * (1 - np.tanh((wave - 4000) / 30))
    depth = warm * (0.9 * balmer + (wave < 3650) * (wave > 912))
    depth = depth + 10 ** (0.4 * feh) * cool * (metals + blanketing)
    depth = depth + 10.0 * (wave < 912) * (log_t[:, None] < 4.4)
    spectrum = calc_planck(wave[None], t) * np.exp(-depth)
    power = np.abs(np.trapezoid(4 * np.pi * spectrum, LIGHT / wave, axis=1))
    return spectrum * (STEFAN * t[:, 0] ** 4 / power)[:, None]


def calc_log_lifetime(mass: Array, feh: float) -> Array:
    """log10 yr on the main sequence."""
    x = np.log10(mass)
    return 10.0 - 3.2 * x + 0.7 * x**2 + 0.08 * feh


def make_isochrone(log_age: float, feh: float) -> Array:
    """Rows of an isochrone: log age, initial and present mass, log L, log T, log g, composition,
    phase (0 main sequence, 2 giants), log of the mass loss."""
    masses = np.geomspace(0.1, 100.0, 3000)
    lifetimes = calc_log_lifetime(masses, feh)

    def mass_of(log_lifetime: Array) -> Array:
        return np.interp(-log_lifetime, -lifetimes, masses)

    turn_off = float(mass_of(np.array([log_age]))[0])
    mass = turn_off * (0.1 / turn_off) ** np.linspace(1, 1e-4, 80) ** 1.5
    log_l = calc_log_luminosity(mass, feh)
    log_t = calc_log_temperature(mass, log_l, feh)
    phase = np.zeros(len(mass))
    if log_age > lifetimes[-1]:
        step = (np.arange(60) + 0.5) / 60
        giants = mass_of(log_age - np.log10(1 + 0.12 * step))
        giants = np.maximum.accumulate(giants) * (1 + 1e-6 * np.arange(1, 61))
        start = calc_log_luminosity(giants, feh)
        low = 1 / (1 + np.exp((giants - 2.2) / 0.3))
        rise = low * np.maximum(3.3 - start, 0) + (1 - low) * 0.3
        giant_l = start + rise * step**3
        cold = 3.72 - 0.05 * np.clip(giant_l - 1, 0, 3) - 0.03 * feh
        warm = calc_log_temperature(giants, start, feh)
        mass, log_l = np.append(mass, giants), np.append(log_l, giant_l)
        log_t = np.append(log_t, warm + (np.minimum(cold, warm) - warm) * np.minimum(3 * step, 1))
        phase = np.append(phase, np.full(60, 2.0))
    present = np.where(phase > 0, 0.95 * mass, mass)
    log_g = np.log10(present / 4.13e10) - log_l + 4 * log_t
    n = len(mass)
    age, composition, loss = np.full(n, log_age), np.full(n, 0.5), np.full(n, -12.0)
    return np.stack([age, mass, present, log_l, log_t, log_g, composition, phase, loss], axis=1)


def calc_log_luminosity(mass: Array, feh: float) -> Array:
    """log10 Lsun on the main sequence."""
    x = np.log10(mass)
    return 3.6 * x - 0.25 * x**2 - 0.1 * feh + 0.2


def calc_log_temperature(mass: Array, log_l: Array, feh: float) -> Array:
    """log10 K on the main sequence."""
    log_r = np.log10(mass) * np.where(mass < 1, 0.8, 0.6) + 0.1 + 0.03 * feh
    return np.maximum(3.762 + 0.25 * log_l - 0.5 * log_r, 3.45)


def make_home(home: Path) -> Path:
    """Write all files below `home`; returns it."""

    def put(name: str, text: str) -> None:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")

    _put_library(home, put)
    _put_isochrones(put)
    _put_hot_stars(home, put)
    _put_agb_stars(put)
    _put_dust(home, put)
    _put_nebulae(put)
    _put_bands(put)
    (home / "OUTPUTS").mkdir(exist_ok=True)
    return home


Put = Callable[[str, str], None]


def _column(values: Array) -> str:
    return "".join(f"{v:.10g}\n" for v in values)


def _rows(names: list[str], line: str) -> str:
    return "".join(f"{name}\n{line}\n" for name in names)


def _share(home: Path, name: str, others: list[str]) -> None:
    for other in others:
        (home / other).unlink(missing_ok=True)
        (home / other).symlink_to(Path(name).name)


def _put_library(home: Path, put: Put) -> None:
    wave = make_wave()
    known = (wave > 3525) & (wave < 7515)
    put("SPECTRA/MILES/miles.lambda", _column(wave))
    put("SPECTRA/MILES/miles.res", _column(np.where(known, 2.54 / 2.3548 / wave * 299_792, -500)))
    put("SPECTRA/MILES/zlegend.dat", "\n".join(LIBRARY_Z) + "\n")
    put("SPECTRA/BaSeL3.1/basel_logt.dat", _column(LOG_T))
    put("SPECTRA/BaSeL3.1/basel_logg.dat", _column(LOG_G))
    for z in LIBRARY_Z:
        stars = calc_stars(wave, LOG_T, float(np.log10(float(z) / 0.019))).astype("<f4")
        with (home / f"SPECTRA/MILES/imiles_z{z}.spectra.bin").open("wb") as file:
            # one record: wavelength fastest, then temperature, then gravity
            for _ in LOG_G:
                stars.tofile(file)


def _put_isochrones(put: Put) -> None:
    tags = [f"{'m' if feh < 0 else 'p'}{abs(feh):.2f}" for feh in FEH]
    put("ISOCHRONES/MIST/zlegend.dat", "".join(f"{tag}\n" for tag in tags))
    row = "%.2f %.9f %.6f %.4f %.4f %.4f %.2f %.1f %.1f\n"
    for tag, feh in zip(tags, FEH, strict=True):
        blocks = [make_isochrone(float(age), feh) for age in LOG_AGES]
        text = "".join("# one age\n" + row * len(b) % tuple(b.ravel()) for b in blocks)
        put(f"ISOCHRONES/MIST/isoc_z{tag}.dat", text)


def _put_hot_stars(home: Path, put: Put) -> None:
    d = "SPECTRA/Hot_spectra"
    t = np.geomspace(25_000, 50_000, 11)
    zs = "0.0001 0.0010 0.0020 0.0030 0.0040 0.0060 0.0080 0.0100 0.0140 0.0200 0.0300 0.0400"
    put(f"{d}/WMBASIC.teff", _column(np.log10(t)))
    put(f"{d}/WMBASIC_zlegend.dat", zs.replace(" ", "\n") + "\n")
    wave = np.geomspace(90.0, 1.1e8, 5508)
    # three gravities of eleven temperatures, per bolometric luminosity
    spectra = np.tile(np.pi * calc_planck(wave[:, None], t) / (STEFAN * t**4), 3)
    table = np.column_stack([wave, np.maximum(spectra, 1e-60)])
    first, *others = (f"{d}/WMBASIC_z{z}.spec" for z in zs.split())
    put(first, ("%.6g" + " %.4e" * 33 + "\n") * len(wave) % tuple(table.ravel()))
    _share(home, first, others)
    put(f"{d}/ipagb.teff", _column(np.linspace(5e4, 3.5e5, 14)))
    dark = "".join(f"{w:.6g} 14*{DARK}\n" for w in np.geomspace(5, 1e8, 9281))
    put(f"{d}/ipagb_solar.spec", dark)
    put(f"{d}/ipagb_halo.spec", dark)
    log_t = np.linspace(4.6, 5.3, 12)
    heads = [f"{a:.4f} {z}" for z in (0.001, 0.004, 0.008, 0.019, 0.04) for a in log_t]
    axis = " ".join(f"{w:.6g}" for w in np.geomspace(91, 1e8, 1963)) + "\n"
    for kind in ("WN", "WC"):
        put(f"{d}/CMFGEN_{kind}.teff", _column(log_t))
        put(f"{d}/CMFGEN_{kind}_Zall.spec", axis + _rows(heads, f"1963*{DARK}"))
    put("SPECTRA/xrb/xsp.lambda", _column(np.geomspace(1, 1e8, 15_000)))
    for z in "-1.30 -1.00 -0.80 -0.70 -0.50 -0.40 -0.30 -0.20 +0.00 +0.20 +0.30".split():
        put(f"SPECTRA/xrb/xsp_feh{z}.spec", "15000*0.0\n" * 10)


def _put_agb_stars(put: Put) -> None:
    d = "SPECTRA/AGB_spectra"
    metals = " ".join(f"{z:.2f}" for z in np.linspace(-1.98, 0.2, 22))
    oxygen = "".join(f"{5.6 - 0.4 * i:.2f} 22*{2500 + 150 * i}\n" for i in range(9))
    put(f"{d}/Orich.teff", f"# toy\n9.99 {metals}\n{oxygen}")
    put(
        f"{d}/Crich.teff", "# toy\n" + "".join(f"{5 - i / 2} {2000 + 400 * i}\n" for i in range(5))
    )
    put(f"{d}/Crich_Aringer.teff", _column(np.linspace(2400, 4000, 9)))
    for name, n, columns in (("Orich", 6146, 9), ("Crich", 6146, 5), ("Crich_Aringer", 9032, 9)):
        waves = np.geomspace(91, 1e8, n)
        put(f"{d}/{name}.spec", "".join(f"{w:.6g} {columns}*{DARK}\n" for w in waves))
    heads = [f"{2000 + 400 * i} {tau:.4f}" for i in range(6) for tau in np.linspace(-4, 2, 50)]
    for kind in ("O", "C"):
        # the shell does nothing: a factor of one, not of zero
        put(f"dust/dusty/{kind}rich_dusty.spec", "2\n91.001 1.1E8\n" + _rows(heads, "2*1.0"))


def _put_dust(home: Path, put: Put) -> None:
    wave = np.geomspace(1, 1e4, 1001)
    flat = "".join(f"{w:.6g} 44*1e-30\n" for w in wave)
    first, *others = (f"dust/dustem/DL07_MW3.1_{k}0.dat" for k in range(7))
    put(first, "# toy\n# toy\n" + flat)
    _share(home, first, others)
    torus = "".join(f"{w:.5e} 9*1e-10\n" for w in np.geomspace(101, 9e7, 125))
    put(
        "dust/Nenkova08_y010_torusg_n10_q2.0.dat",
        "#\n" * 3 + "5 10 20 30 40 60 80 100 150\n" + torus,
    )
    for kind in "hc":
        rows = [
            f"{w:.1f} {t:.2f} 6*{t * (5500 / w) ** 0.7:.4f}\n"
            for t in np.linspace(0.25, 10, 18)
            for w in np.geomspace(1000, 30_000, 25)
        ]
        put(f"dust/alldirty_{kind}.dat", "#\n" * 3 + "".join(rows))
    rows = [f"{w * 1e-4:.4f} {1e4 / w:.4f} 1.0\n" for w in np.geomspace(22_000, 1160, 30)]
    put("dust/Gordon03_table4.dat", "".join(rows))


def _put_nebulae(put: Put) -> None:
    heads = [
        f"{z} {age:g} {u}"
        for z in (-1.98, -1.5, -0.98, -0.58, -0.39, -0.3, -0.2, -0.1, 0, 0.1, 0.2)
        for age in (0.5e6, 1e6, 2e6, 3e6, 4e6, 5e6, 6e6, 7e6, 1e7, 2e7)
        for u in (-4, -3.5, -3, -2.5, -2, -1.5, -1)
    ]
    for end, n, low, high in (("cont", 1963, 91, 1e8), ("lines", 166, 923.15, 6.3e6)):
        axis = " ".join(f"{w:.6g}" for w in np.geomspace(low, high, n))
        put(f"nebular/ZAU_ND_mist.{end}", f"#\n{axis}\n" + _rows(heads, f"{n}*0.0"))
    lines = np.geomspace(923.15, 6.3e6, 166)
    put("data/emlines_info.dat", "".join(f"{w:.3f},line{i}\n" for i, w in enumerate(lines)))


def _put_bands(put: Put) -> None:
    centres = np.geomspace(1500, 1e6, N_BANDS)
    bands = [
        "# toy\n"
        + "".join(f"{c * x:.3f} {y}\n" for x, y in ((0.9, 0), (0.95, 1), (1.05, 1), (1.1, 0)))
        for c in centres
    ]
    put("data/allfilters.dat", "".join(bands))
    put("data/FILTER_LIST", "".join(f"{i + 1} band_{i + 1} toy\n" for i in range(N_BANDS)))
    put(
        "data/filter_lambda_eff.dat",
        "#\n" + "".join(f"{i + 1} {c:.1f}\n" for i, c in enumerate(centres)),
    )
    put("data/magsun.dat", "#\n" + "".join(f"{i + 1} 4.8 4.8\n" for i in range(N_BANDS)))
    put("data/imf.dat", "0.08 0.5 1.3\n0.5 120. 2.3\n")
    rows = [
        f"{4040 + i} {4060 + i} {4010 + i} {4030 + i} {4070 + i} {4090 + i} 2 i\n"
        for i in range(30)
    ]
    put("data/allindices.dat", "#\n" * 4 + "".join(rows))
    wave = np.geomspace(91, 1.6e6, 1221)
    for name, head, t in (("A0V_KURUCZ_92", "#\n", 9600.0), ("SUN_STScI", "", 5772.0)):
        flux = np.maximum(calc_planck(wave, np.array(t)), 1e-60)
        rows = [f"{w:.6g} {f:.5e}\n" for w, f in zip(wave, flux, strict=True)]
        put(f"SPECTRA/{name}.SED", head + "".join(rows))


if __name__ == "__main__":
    os.umask(0o022)
    make_home(Path(sys.argv[1]))
