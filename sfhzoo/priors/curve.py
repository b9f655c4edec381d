"""The figure of a training's losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def plot_loss(losses: list[float], path: Path, every: int = 100) -> None:
    """The training curve: mean loss of each `every` steps, and its running median."""
    from matplotlib.figure import Figure
    from scipy.ndimage import median_filter

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    step = every * (1 + np.arange(len(losses)))
    axes.plot(step, losses, color="0.75", lw=0.8, label=f"mean of {every} steps")
    axes.plot(step, median_filter(losses, 21, mode="nearest"), color="C0", label="running median")
    lo, hi = np.percentile(losses, [0, 98])
    axes.set(xlabel="step", ylabel="denoising loss", ylim=(lo - 0.05 * (hi - lo), hi * 1.02))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
