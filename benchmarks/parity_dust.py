"""Dust against BAGPIPES' model_galaxy, 1000 Å to 1000 µm; prints a table, writes test data.

Runs in any environment that has the bagpipes wheel (extra `grids`):

python benchmarks/parity_dust.py [--out tests/data/bagpipes_dust.npz] [--figure FILE]

BAGPIPES works at R = 1000 and on ages 0.1 dex apart; `--age-step` makes the latter finer. Its
metallicity is at a node of the grid (Z = 0.02), its star formation rate constant within the time
bins of sfhzoo, so that nothing but dust and numerics differs; intergalactic absorption is off.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from astropy.cosmology import FlatLambdaCDM
from numpy.typing import NDArray

from sfhzoo.forward.attenuation import make_law
from sfhzoo.forward.dust_emission import DustEmission
from sfhzoo.forward.model import ForwardModel
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.timebins import TimeBins

ROOT = Path(__file__).parents[1]
GRID = ROOT / "sfhzoo" / "data" / "bc03-miles-v1.zarr.zip"
REDSHIFT = 0.01
WAVE = np.geomspace(1000.0, 1e7, 1601) * (1 + REDSHIFT)
LOGZSOL = float(np.log10(0.02 / 0.0142))
YOUNG, OLD = slice(60, 64), slice(12, 30)
"""bins of the two episodes of star formation, 1 and 5 Msun/yr"""


class Case(NamedTuple):
    """One dust model: its law, A_V (mag) and emission."""

    law: str
    parameters: dict[str, float]
    a_v: float
    emission: tuple[float, float, float]


CASES = {
    "calzetti": Case("calzetti", {}, 1.0, (3.5, 1.0, 0.01)),
    "calzetti_thin": Case("calzetti", {}, 0.2, (1.3, 5.0, 0.10)),
    "cardelli": Case("cardelli", {"r_v": 3.1}, 0.7, (3.5, 1.0, 0.01)),
    "salim": Case("salim", {"slope": -0.4, "bump": 2.0}, 1.5, (4.2, 0.6, 0.03)),
}


def make_bins() -> TimeBins:
    """The bins in BAGPIPES' cosmology."""
    return TimeBins(FlatLambdaCDM(70, 0.3))


def make_sfr(bins: TimeBins) -> NDArray[np.float64]:
    """The two episodes [bin], Msun/yr."""
    sfr = np.zeros(bins.n)
    sfr[YOUNG], sfr[OLD] = 1.0, 5.0
    return sfr


def calc_ours(case: Case, grid: SSPGrid) -> NDArray[np.float64]:
    """Our flux [wave] at `WAVE`, erg/s/cm²/Å."""
    model = ForwardModel(
        grid, WAVE, REDSHIFT, bins=make_bins(), velocity_step=300.0,
        law=make_law(case.law, **case.parameters), dust_emission=DustEmission(*case.emission),
    )  # fmt: skip
    sfr = torch.from_numpy(make_sfr(model.bins))
    return model(sfr, torch.full_like(sfr, LOGZSOL), case.a_v, 0.0).numpy()


def import_bagpipes(age_step: float) -> Any:
    """The package, with ages `age_step` dex apart; imported where it may make a directory."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        try:
            pipes = importlib.import_module("bagpipes")
        finally:
            os.chdir(here)
    config, age_today = pipes.config, pipes.utils.cosmo.age(0.0).value
    log_age = np.arange(6.0, np.log10(age_today) + 9.0, age_step)
    edges = 10 ** pipes.utils.make_bins(log_age, make_rhs=True)[0]
    edges[0], edges[-1] = 0.0, 1e9 * age_today
    config.age_sampling, config.age_bins = 10**log_age, edges
    config.age_widths = np.diff(edges)
    # the intergalactic medium is not ours to model
    pipes.models.igm_model.igm.trans = lambda self, redshift: 1.0
    return pipes


def calc_bagpipes(case: Case, pipes: Any) -> NDArray[np.float64]:
    """BAGPIPES' flux [wave] at `WAVE`, erg/s/cm²/Å."""
    bins = make_bins()
    lookback = bins.lookback_edges(bins.age_at(REDSHIFT))
    sfr, overlap = make_sfr(bins), bins.overlap(bins.age_at(REDSHIFT))
    dust = {"type": case.law.capitalize(), "Av": case.a_v}
    dust |= dict(zip(("qpah", "umin", "gamma"), case.emission))
    if case.law == "salim":
        dust |= {"delta": case.parameters["slope"], "B": case.parameters["bump"]}
    components: dict[str, Any] = {"redshift": REDSHIFT, "dust": dust}
    for i, part in enumerate((OLD, YOUNG)):
        mass = float((sfr * overlap)[part].sum() * 1e9)
        components[f"constant{i + 1}"] = {
            "age_max": float(lookback[part.start]), "age_min": float(lookback[part.stop]),
            "massformed": np.log10(mass), "metallicity": 1.0,
        }  # fmt: skip
    return pipes.model_galaxy(components, spec_wavs=WAVE).spectrum[:, 1]


def plot(path: Path, grid: SSPGrid, theirs: NDArray[np.float64]) -> None:
    """The laws, a spectrum with and without its dust against BAGPIPES, and the difference."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    case, micron = CASES["calzetti"], WAVE / (1 + REDSHIFT) / 1e4
    ours, stars = calc_ours(case, grid), calc_ours(case._replace(a_v=0.0), grid)
    figure, axes = plt.subplots(
        3, 1, figsize=(7.2, 7.6), height_ratios=(2.2, 3, 1), layout="constrained"
    )
    wave = np.geomspace(912.0, 3e4, 1000)
    for name, parameters, label in (
        ("calzetti", {}, "Calzetti"), ("cardelli", {}, "Cardelli, $R_V$ = 3.1"),
        ("salim", {"slope": -0.4, "bump": 2.0}, "Salim, slope -0.4, bump 2"),
    ):  # fmt: skip
        axes[0].plot(wave / 1e4, make_law(name, **parameters)(wave), lw=1.5, label=label)
    axes[0].set(xscale="log", ylim=(0, 7), ylabel=r"$A(\lambda) / A_V$")
    axes[0].set_xticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
    axes[0].legend(frameon=False)
    axes[1].plot(micron, WAVE * stars, color="0.7", lw=1, label="stars, without dust")
    axes[1].plot(micron, WAVE * theirs, color="C1", lw=3, alpha=0.5, label="BAGPIPES")
    axes[1].plot(micron, WAVE * ours, color="k", lw=0.8, label="sfhzoo, $A_V$ = 1")
    peak = float((WAVE * stars).max())
    axes[1].set(xscale="log", yscale="log", ylim=(1e-4 * peak, 3 * peak))
    axes[1].set_ylabel(r"$\lambda f_\lambda$ (erg/s/cm²)")
    axes[1].legend(frameon=False)
    axes[2].axhline(0, color="0.7", lw=0.8)
    axes[2].plot(micron, 100 * (ours / theirs - 1), color="k", lw=0.6)
    axes[2].set(xscale="log", ylim=(-4, 4), ylabel="difference (%)")
    axes[2].set_xlabel("rest wavelength (µm)")
    for axis in axes[1:]:
        axis.set_xlim(0.1, 1000)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print the comparison; write the arrays and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--age-step", type=float, default=0.1)
    parser.add_argument("--case", choices=list(CASES), help="this one only")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path, help="needs the case calzetti")
    options = parser.parse_args()
    grid, pipes = SSPGrid.read(GRID), import_bagpipes(options.age_step)
    rest, arrays = WAVE / (1 + REDSHIFT), {"wave": WAVE}
    ranges = ((1e3, 3e3), (3e3, 1e4), (1e4, 3e4), (3e4, 3e5), (3e5, 1e7), (1e3, 1e7))
    version = importlib.metadata.version("bagpipes")
    print(f"bagpipes {version}, ages {options.age_step} dex apart, {datetime.date.today()}")
    print(
        "sfhzoo / BAGPIPES - 1, mean and standard deviation in ranges of rest wavelength (Å), %\n"
    )
    print("| case | " + " | ".join(f"{a:.0e}-{b:.0e}" for a, b in ranges) + " |")
    print("|---" * (len(ranges) + 1) + "|")
    for name in [options.case] if options.case else CASES:
        case = CASES[name]
        theirs = calc_bagpipes(case, pipes)
        arrays[name] = theirs.astype(np.float32)
        ratio = 100 * (calc_ours(case, grid) / theirs - 1)
        cells = [ratio[(rest >= a) & (rest < b)] for a, b in ranges]
        print(f"| {name} | " + " | ".join(f"{c.mean():+.2f} {c.std():.2f}" for c in cells) + " |")
    if options.figure:
        plot(options.figure, grid, arrays["calzetti"].astype(float))
    if options.out:
        np.savez_compressed(options.out, **arrays)
        print(f"\n{options.out}: {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
