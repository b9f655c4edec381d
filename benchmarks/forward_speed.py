"""How long the forward model takes for one SDSS spectrum; prints a table.

python benchmarks/forward_speed.py [--threads 1] [--device cpu] [--dtype float64]
"""

from __future__ import annotations

import argparse
import datetime
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sfhzoo.forward.model import ForwardModel, calc_spectrum
from sfhzoo.grids.ssp import SSPGrid

GRID = Path(__file__).parents[1] / "sfhzoo" / "data" / "bc03-miles-v1.zarr.zip"
N_HISTORIES = 1000


def measure(function: Callable[[], object], repeats: int = 5) -> float:
    """Best wall time of a few calls, s."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Time reading, building, observing and the fast path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)

    wave = 10 ** (3.58 + 1e-4 * np.arange(3800))
    start = time.perf_counter()
    grid = SSPGrid.read(GRID)
    read = time.perf_counter() - start

    def build() -> ForwardModel:
        return ForwardModel(grid, wave, 0.0873, lsf_sigma=69.0, device=options.device, dtype=dtype)

    start = time.perf_counter()
    model = build()
    first = time.perf_counter() - start
    flat = model.templates.flatten(0, 1)
    pixels = model.at(0.3, 150.0)
    generator = torch.Generator().manual_seed(1)
    sfr = torch.rand(N_HISTORIES, 64, generator=generator).to(model.device, dtype)
    logzsol = (0.5 * torch.rand(N_HISTORIES, 64, generator=generator) - 0.5).to(sfr)
    fast = measure(lambda: calc_spectrum(sfr, logzsol, pixels, model.nodes))
    few = slice(0, 100)
    full = measure(lambda: model(sfr[few], logzsol[few], 0.3, 150.0))

    print(
        f"{platform.machine()}, {options.threads} thread(s), {options.device}, {options.dtype}, "
        f"torch {torch.__version__}, {datetime.date.today()}"
    )
    print(f"{len(wave)} pixels, {model.templates.shape[-1]} fine, {len(flat)} templates")
    print("| step | s |\n|---|---|")
    print(f"| read the grid | {read:.3f} |")
    print(f"| build the model, first time | {first:.3f} |")
    print(f"| build the model, again | {measure(build):.3f} |")
    print(f"| observe {len(flat)} templates | {measure(lambda: model.at(0.3, 150.0)):.3f} |")
    print(f"| {N_HISTORIES} spectra, fixed A_V and sigma_v | {fast:.3f} |")
    print(f"| 100 spectra, all free | {full:.3f} |")
    print(f"\nfast path: {N_HISTORIES / fast:.0f} spectra/s; all free: {100 / full:.0f} spectra/s")


if __name__ == "__main__":
    main()
