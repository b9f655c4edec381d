"""How long the forward model takes for one SDSS spectrum and eight bands; prints a table.

python benchmarks/forward_speed.py [--threads 1] [--clock cpu] [--dtype float64] [--out FILE]

"All on" is a batch of 100 histories on 3800 pixels, each with its own A_V, sigma_v and velocity,
an LSF, and eight bands from the far ultraviolet to 22 µm with dust emission, and the gradient of a
chi² in every argument. On a machine that does other work too, `--clock cpu` counts the seconds of
this process.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfhzoo.forward.attenuation import calc_attenuation
from sfhzoo.forward.bands import BandModel, load_filters
from sfhzoo.forward.kinematics import calc_broadened
from sfhzoo.forward.model import ForwardModel, calc_spectrum
from sfhzoo.grids.ssp import SSPGrid

GRID = Path(__file__).parents[1] / "sfhzoo" / "data" / "bc03-miles-v1.zarr.zip"
BANDS = "galex_FUV galex_NUV sdss_u0 sdss_r0 sdss_z0 twomass_Ks wise_w1 wise_w4".split()
REDSHIFT = 0.0873
N_HISTORIES = 100
LIMIT = 0.2
"""s, the target for everything on, on two cores"""


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK = "wall"


def measure(function: Callable[[], object], repeats: int = 7) -> float:
    """Best time of a few calls, s."""
    times = []
    for _ in range(repeats):
        start = CLOCKS[CLOCK]()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(CLOCKS[CLOCK]() - start)
    return min(times)


def measure_gradient(function: Callable[[], Tensor], inputs: list[Tensor]) -> tuple[float, float]:
    """Seconds of a call, and of the call with the gradient of the sum of its squares."""

    def backward() -> None:
        torch.autograd.grad((function() ** 2).sum(), inputs)

    return measure(function), measure(backward)


class Timing:
    """The models, one batch, and the steps of the forward model on it."""

    def __init__(self, grid: SSPGrid, device: str, dtype: torch.dtype) -> None:
        wave = 10 ** (3.58 + 1e-4 * np.arange(3800))
        self.build = lambda: ForwardModel(
            grid, wave, REDSHIFT, lsf_sigma=69.0, device=device, dtype=dtype
        )
        filters = load_filters(BANDS)
        self.build_bands = lambda: BandModel(grid, filters, REDSHIFT, device=device, dtype=dtype)
        self.model, self.bands = self.build(), self.build_bands()
        generator = torch.Generator().manual_seed(1)
        draw = lambda *n: torch.rand(*n, generator=generator).to(device, dtype)  # noqa: E731
        n = N_HISTORIES
        self.sfr, self.logzsol = draw(n, 64), 0.5 * draw(n, 64) - 0.5
        self.a_v, self.sigma_v, self.velocity = draw(n), 50 + 200 * draw(n), 50 * draw(n)
        self.inputs = [self.sfr, self.logzsol, self.a_v, self.sigma_v, self.velocity]
        # fluxes of order one, as a whitened likelihood has them
        self.unit = 1 / self.model(*[v.detach() for v in self.inputs]).mean()
        for value in self.inputs:
            value.requires_grad_()

    def steps(self) -> dict[str, tuple[float, float]]:
        """Seconds of each step, without and with its gradient."""
        m, unit = self.model, self.unit
        fine = lambda: calc_spectrum(self.sfr, self.logzsol, m.templates, m.nodes) * unit  # noqa: E731
        light = fine().detach().requires_grad_()
        dusty = lambda: light * calc_attenuation(self.a_v, m.curve)  # noqa: E731
        broad = lambda: calc_broadened(  # noqa: E731
            light, self.sigma_v, self.velocity, m.velocity_step
        )
        pixels = lambda: torch.sparse.mm(m._pixels, light.T).T  # noqa: E731
        spectrum = lambda: m(*self.inputs) * unit  # noqa: E731
        bands = lambda: self.bands(*self.inputs[:3])  # noqa: E731
        both = lambda: torch.cat([spectrum(), bands()], dim=1)  # noqa: E731
        return {
            "histories to starlight": measure_gradient(fine, self.inputs[:2]),
            "attenuation": measure_gradient(dusty, [light, self.a_v]),
            "velocities": measure_gradient(broad, [light, self.sigma_v, self.velocity]),
            "pixels": measure_gradient(pixels, [light]),
            "the spectrum, all of these": measure_gradient(spectrum, self.inputs),
            "8 bands with dust emission": measure_gradient(bands, self.inputs[:3]),
            "**all on**": measure_gradient(both, self.inputs),
        }


def report(options: argparse.Namespace) -> list[str]:
    """The lines of the table."""
    start = CLOCKS[CLOCK]()
    grid = SSPGrid.read(GRID)
    read = CLOCKS[CLOCK]() - start
    timing = Timing(grid, options.device, getattr(torch, options.dtype))
    model = timing.model
    templates = model.templates.shape[0] * model.templates.shape[1]
    lines = [
        f"{platform.machine()}, {options.threads} thread(s) of {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, {CLOCK} time, {options.device}, {options.dtype}, "
        f"torch {torch.__version__}, {datetime.date.today()}",
        f"{N_HISTORIES} histories, {len(model.wave_obs)} pixels ({model.templates.shape[-1]} "
        f"fine), {templates} templates, {len(BANDS)} bands\n",
        "| step | s | s with gradient |\n|---|---|---|",
    ]
    steps = timing.steps()
    lines += [f"| {name} | {a:.4f} | {b:.4f} |" for name, (a, b) in steps.items()]
    with torch.no_grad():
        pixels = model.at(0.3, 150.0)
        many = [v.detach().repeat(10, 1) for v in timing.inputs[:2]]
        once = {
            "read the grid": read,
            "build the model": measure(timing.build, 3),
            "build the bands": measure(timing.build_bands, 3),
            f"observe {templates} templates": measure(lambda: model.at(0.3, 150.0), 3),
            "1000 spectra at fixed A_V and sigma_v": measure(
                lambda: calc_spectrum(*many, pixels, model.nodes), 3
            ),
        }
    lines += ["\n| once per object | s |\n|---|---|"]
    lines += [f"| {name} | {seconds:.3f} |" for name, seconds in once.items()]
    total = steps["**all on**"][1]
    verdict = "met" if total <= LIMIT else "missed"
    return [*lines, f"\nall on, with gradients: {total:.3f} s; target {LIMIT} s {verdict}"]


def main() -> None:
    """Print the table; write it with --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    global CLOCK
    CLOCK = options.clock
    torch.set_num_threads(options.threads)
    text = "\n".join(report(options))
    print(text)
    if options.out:
        title = "# Speed of the forward model (benchmarks/forward_speed.py)\n\n"
        options.out.write_text(title + text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
