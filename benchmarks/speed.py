"""What a posterior costs: seconds, network calls, stages, growth, and BAGPIPES on the same galaxy.

    python benchmarks/speed.py --threads 2 [--sampler auto pnpdm] [--bagpipes work/bagpipes.json]

One SDSS spectrum (NGC 3522, bundled), everything free. The time is `wall_s.sampling`: from a
parsed spectrum, prior and grid loaded, to finished samples. The effective size is measured, not
estimated: the spectrum is fitted again and again with other seeds; per quantity it is the variance
within a fit over the variance of the fits' means. The batch is the bundled mocks, one after the
other in one process. BAGPIPES' numbers come from bagpipes_fit.py, run before on the same machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sfhzoo
from sfhzoo.cli.infer import EXAMPLE
from sfhzoo.diagnostics import mocks
from sfhzoo.posterior import Posterior
from sfhzoo.spectra.spectrum import Spectrum

QUANTITIES = ("log_mass_formed", "age_mass_weighted", "t50", "t90", "log_ssfr_1gyr",
              "logzsol_mass_weighted", "a_v", "sigma_v")  # fmt: skip
ROW = "| {case} | {pixels} | {samples} | {seconds:.2f} | {nfe} | {stages} |"


class Bench:
    """Loaded models, and one fit at a time."""

    def __init__(self, sampler: str) -> None:
        self.prior, self.grid, self.sampler = sfhzoo.load_prior(), sfhzoo.load_grid(), sampler

    def fit(self, spectrum: Spectrum, samples: int, seed: int = 0, **options: Any) -> Posterior:
        return sfhzoo.infer(spectrum, self.prior, self.grid, samples=samples, seed=seed,
                            sampler=self.sampler, **options)  # fmt: skip

    def row(self, case: str, spectrum: Spectrum, samples: int, **options: Any) -> str:
        """One line of the table: the median of three fits, of one where that takes long."""
        runs = [self.fit(spectrum, samples, 0, **options)]
        if runs[0].provenance["wall_s"]["sampling"] < 15:
            runs += [self.fit(spectrum, samples, seed, **options) for seed in (1, 2)]
        seconds = float(np.median([r.provenance["wall_s"]["sampling"] for r in runs]))
        stages = runs[0].provenance.get("facts", {}).get("seconds", {})
        total = max(runs[0].provenance["wall_s"]["sampling"], 1e-9)
        shares = {**stages, "set up": max(total - sum(stages.values()), 0.0)} if stages else {}
        listed = ", ".join(f"{k} {100 * v / total:.0f} %" for k, v in shares.items())
        return ROW.format(case=case, pixels=int(runs[0].observed.used.sum()), samples=samples,
                          seconds=seconds, nfe=runs[0].provenance["nfe"],
                          stages=listed or "-")  # fmt: skip


def calc_effective_size(fits: list[Posterior]) -> dict[str, float]:
    """Quantity -> variance within a fit over the variance of the means of several."""
    out = {}
    for name in QUANTITIES:
        values = np.array([f.quantities()[name][0] for f in fits])
        within, between = values.var(axis=1, ddof=1).mean(), values.mean(axis=1).var(ddof=1)
        out[name] = float(within / max(between, 1e-300))
    return out


def measure_batch(bench: Bench, n: int, samples: int) -> str:
    """Seconds per spectrum over the first mocks of the three S/N bands."""
    chosen = mocks.load().select(n, bands_only=True)[:n]
    spectra = [mocks.make_spectrum(m, bench.grid, bench.prior.bins) for m in chosen]
    start = time.perf_counter()
    seconds = [bench.fit(s, samples, i).provenance["wall_s"]["sampling"]
               for i, s in enumerate(spectra)]  # fmt: skip
    wall = (time.perf_counter() - start) / len(spectra)
    return (
        f"Batch of {len(spectra)} mocks, {samples} samples each: {wall:.2f} s per spectrum "
        f"all in; sampling {np.median(seconds):.2f} s median, {max(seconds):.2f} s longest."
    )


def describe_machine() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines()
             if line.startswith("model name")] if info.exists() else []  # fmt: skip
    name = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{datetime.date.today()}"
    )


def describe_bagpipes(path: Path) -> list[str]:
    found = json.loads(path.read_text(encoding="utf-8"))
    values = ", ".join(f"{k} {m:.4g} ± {s:.2g}" for k, (m, s) in found["posterior"].items())
    return [
        "",
        f"BAGPIPES (nautilus, {found['n_live']} live points) on {found['spectrum']}, "
        f"{found['pixels']} pixels, double power law: {found['cpu_seconds']:.0f} CPU s, "
        f"{found['wall_seconds']:.0f} s wall, {found['likelihoods']} likelihoods. {values}.",
    ]


def run(sampler: str, batch: int, repeats: int) -> list[str]:
    """The tables of one sampler."""
    bench, spectrum = Bench(sampler), Spectrum.read(EXAMPLE)
    bench.fit(spectrum, 20)  # artifacts and caches are loaded by the first fit
    wave = spectrum.wave_obs
    third = float(wave[0]), float(wave[len(wave) // 3])
    two_thirds = float(wave[0]), float(wave[2 * len(wave) // 3])
    lines = [f"## {sampler}", "",
             "| case | pixels | samples | s | network calls | share of time |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    lines += [
        bench.row("the spectrum", spectrum, 100),
        bench.row("more samples", spectrum, 1000),
        bench.row("two thirds of the pixels", spectrum, 100, wave_range=two_thirds),
        bench.row("a third of the pixels", spectrum, 100, wave_range=third),
        bench.row("no calibration polynomial", spectrum, 100, calibration_order=0),
    ]
    if repeats > 1:
        sizes = calc_effective_size([bench.fit(spectrum, 100, seed) for seed in range(repeats)])
        listed = ", ".join(f"{name} {size:.0f}" for name, size in sizes.items())
        error = 100 * (2 / (repeats - 1)) ** 0.5
        lines += ["", f"Effective size of 100 samples, from {repeats} fits (± {error:.0f} %): "
                  f"{listed}."]  # fmt: skip
    if batch:
        lines += ["", measure_batch(bench, batch, 100)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sampler", nargs="+", default=["auto"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=20, help="fits for the effective size")
    parser.add_argument("--bagpipes", type=Path, help="JSON of bagpipes_fit.py")
    parser.add_argument("--out", type=Path, help="write the Markdown here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = ["# Speed", "", f"`benchmarks/speed.py`, {describe_machine()}.", ""]
    for sampler in args.sampler:
        lines += [*run(sampler, args.batch, args.repeats), ""]
        print("\n".join(lines), flush=True)
    if args.bagpipes:
        lines += describe_bagpipes(args.bagpipes)
    text = "\n".join(lines)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
