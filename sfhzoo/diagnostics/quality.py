"""How well a prior reproduces the histories it was trained on.

Draws of the prior are set against the held-out test histories of a training set, both as a user
sees them: SFR >= 0 and log Z above its floor. Everything is at cosmic time = today.

| metric                  | what is compared                                        | threshold |
|-------------------------|---------------------------------------------------------|-----------|
| `ks_<quantity>`         | Kolmogorov-Smirnov distance of a derived quantity       | 0.03      |
| `bin_mean_<history>`    | worst bin: difference of means / standard deviation     | 0.05      |
| `bin_std_<history>`     | worst bin: ratio of standard deviations - 1             | 0.05      |
| `correlation_rms`       | elements of the 128 x 128 correlation matrix of x, rms  | 0.015     |
| `correlation_max`       | the same, largest difference                            | 0.08      |
| `burstiness`            | ratio - 1 of the rms of log SFR about a 1-Gyr mean      | 0.10      |
| `classifier_<features>` | accuracy of boosted trees, draws against histories      | 0.60      |

The sSFR is that of the last Gyr per mass *formed*. A classifier's `null` is the accuracy of the
same classifier on two halves of the test histories, `error` the binomial error of either.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo import histories as h
from sfhzoo.errors import Incompatible, SamplingError, SfhzooError
from sfhzoo.histories import Histories
from sfhzoo.simulations import trainingset
from sfhzoo.timebins import TimeBins
from sfhzoo.zoo.artifacts import load_prior, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sfhzoo.priors.prior import Prior

Array = NDArray[np.float64]

SCHEMA = 1
KS_LIMIT = 0.03
MEAN_LIMIT = 0.05
STD_LIMIT = 0.05
CORRELATION_RMS_LIMIT = 0.015
CORRELATION_MAX_LIMIT = 0.08
BURSTINESS_LIMIT = 0.10
CLASSIFIER_LIMIT = 0.60

SNAP = 0.02
"""dex; a classifier would see the exact value of a floor, which no continuous draw can hit"""
LOG_SFR_FLOOR = float(np.log10(h.SFR_FLOOR))
LOG_SSFR_FLOOR = float(np.log10(h.SSFR_FLOOR))
SMOOTHING = 1.0
"""Gyr, of the running mean that defines bursts"""
BURST_LOG_SFR = -3.0
"""windows that go below are left out: the floor's edge is no burst"""
BATCH = 2000
"""draws between two moves of the progress bar"""

QUANTITIES = {
    "log_mass_formed": r"$\log\,M_{\rm formed}/M_\odot$",
    "t50": r"$t_{50}$ [Gyr]",
    "t90": r"$t_{90}$ [Gyr]",
    "log_ssfr_1gyr": r"$\log\,{\rm sSFR}_{1\,\rm Gyr}\ [{\rm yr}^{-1}]$",
    "logzsol_mass_weighted": r"$\log\,\langle Z\rangle_M/Z_\odot$",
}


def calc_log_sfr(sfr: Array) -> Array:
    """log10(SFR + 1e-4), SFR in Msun/yr; any shape."""
    return np.log10(np.asarray(sfr, float) + h.SFR_FLOOR)


def calc_quantities(draws: Histories, bins: TimeBins) -> dict[str, Array]:
    """The five derived quantities of QUANTITIES, each [galaxy], at cosmic time = today.

    Gyr, log10 Msun, log10 1/yr and log10 Z/Z_sun; t50 and t90 are NaN for galaxies without stars.
    """
    today = bins.age_today
    mass = h.calc_mass_formed(draws.sfr, bins, today)
    logz = h.calc_logzsol_mass_weighted(draws.sfr, draws.logzsol, bins, today)
    ssfr = h.calc_ssfr(draws.sfr, bins, today, np.maximum(mass, 1.0))
    return {
        "log_mass_formed": np.log10(np.maximum(mass, 1.0)),
        "t50": h.calc_formation_quantile(draws.sfr, bins, today, 0.5),
        "t90": h.calc_formation_quantile(draws.sfr, bins, today, 0.9),
        "log_ssfr_1gyr": np.log10(ssfr),
        "logzsol_mass_weighted": np.where(mass > 0, logz, h.LOGZSOL_FLOOR),
    }


def calc_ks_distance(a: Array, b: Array) -> float:
    """Largest distance of two empirical distribution functions; NaN counts as no value."""
    from scipy.stats import ks_2samp

    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    return float(ks_2samp(a, b, method="asymp").statistic) if len(a) and len(b) else 1.0


def calc_burstiness(log_sfr: Array, bins: TimeBins) -> float:
    """rms (dex) of log SFR [galaxy, bin] about its centred running mean over about 1 Gyr.

    The window is the odd number of bins nearest to 1 Gyr; windows that leave the history or go
    below 1e-3 Msun/yr are left out.
    """
    half = max(1, round((SMOOTHING / bins.width - 1) / 2))
    windows = np.lib.stride_tricks.sliding_window_view(log_sfr, 2 * half + 1, axis=1)
    used = windows.min(axis=2) > BURST_LOG_SFR
    residual = (windows[..., half] - windows.mean(axis=2))[used]
    return float(np.sqrt(np.mean(residual**2))) if residual.size else 0.0


def calc_correlation(columns: Array) -> Array:
    """Correlation matrix [d, d] of columns [galaxy, d]; a constant column correlates with none."""
    centred = columns - columns.mean(axis=0)
    unit = centred / np.maximum(centred.std(axis=0), 1e-12)
    return unit.T @ unit / len(unit)


def calc_columns(draws: Histories) -> Array:
    """log10(SFR + 1e-4) and log Z side by side [galaxy, 2 bin]: x up to a scale per column."""
    return np.concatenate([calc_log_sfr(draws.sfr), np.asarray(draws.logzsol, float)], axis=1)


def _snap(values: Array, floor: float) -> Array:
    return np.where(values < floor + SNAP, floor, values)


def calc_features(draws: Histories, bins: TimeBins) -> dict[str, Array]:
    """What the classifiers see, [galaxy, feature]: "x" and "derived", snapped to the floors.

    Trees do not feel monotonic maps of a column, so x goes in as log SFR and log Z.
    """
    quantities = calc_quantities(draws, bins)
    for name, floor in (
        ("log_ssfr_1gyr", LOG_SSFR_FLOOR),
        ("logzsol_mass_weighted", h.LOGZSOL_FLOOR),
    ):
        quantities[name] = _snap(quantities[name], floor)
    x = [
        _snap(calc_log_sfr(draws.sfr), LOG_SFR_FLOOR),
        _snap(np.asarray(draws.logzsol, float), h.LOGZSOL_FLOOR),
    ]
    return {
        "x": np.concatenate(x, axis=1),
        "derived": np.stack([quantities[k] for k in QUANTITIES], axis=1),
    }


def calc_classifier_accuracy(a: Array, b: Array, seed: int) -> tuple[float, float]:
    """Accuracy, and its binomial error, of telling a from b [galaxy, feature] on unseen halves.

    Both sets are cut to the shorter one, so chance is 0.5. SfhzooError without scikit-learn.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ImportError as e:
        raise SfhzooError(
            f"the classifier test needs scikit-learn ({e}); "
            "install it with: pip install 'sfhzoo[validate]'"
        ) from e
    half = min(len(a), len(b)) // 2
    rng = np.random.default_rng(seed)
    a, b = (v[rng.permutation(len(v))[: 2 * half]] for v in (a, b))
    label = np.repeat([0, 1], half)
    model = HistGradientBoostingClassifier(random_state=seed)
    model.fit(np.concatenate([a[:half], b[:half]]), label)
    accuracy = float(model.score(np.concatenate([a[half:], b[half:]]), label))
    return accuracy, float(np.sqrt(0.25 / (2 * half)))


def _metric(value: float, threshold: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "threshold": threshold, "passed": bool(value <= threshold), **more}


def _bin_metrics(a: Array, b: Array, name: str) -> dict[str, dict[str, Any]]:
    """The worst bin of histories a against b [galaxy, bin]."""
    spread = np.maximum(b.std(axis=0), 1e-12)
    shift = np.abs(a.mean(axis=0) - b.mean(axis=0)) / spread
    ratio = np.abs(a.std(axis=0) / spread - 1)
    return {
        f"bin_mean_{name}": _metric(float(shift.max()), MEAN_LIMIT, bin=int(shift.argmax())),
        f"bin_std_{name}": _metric(float(ratio.max()), STD_LIMIT, bin=int(ratio.argmax())),
    }


def _classifier_metrics(
    draws: Histories, truth: Histories, bins: TimeBins, seed: int
) -> dict[str, dict[str, Any]]:
    ours, theirs = calc_features(draws, bins), calc_features(truth, bins)
    half = len(truth.sfr) // 2
    metrics = {}
    for name in ours:
        accuracy, error = calc_classifier_accuracy(ours[name], theirs[name], seed)
        null, null_error = calc_classifier_accuracy(theirs[name][:half], theirs[name][half:], seed)
        metrics[f"classifier_{name}"] = _metric(
            accuracy, CLASSIFIER_LIMIT, error=error, null=null, null_error=null_error
        )
    return metrics


def calc_metrics(
    draws: Histories, truth: Histories, bins: TimeBins, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """All metrics of the module's table; draws and truth hold arrays [galaxy, bin].

    Raises SfhzooError without scikit-learn.
    """
    ours, theirs = calc_quantities(draws, bins), calc_quantities(truth, bins)
    metrics = {
        f"ks_{k}": _metric(calc_ks_distance(ours[k], theirs[k]), KS_LIMIT) for k in QUANTITIES
    }
    a, b = calc_columns(draws), calc_columns(truth)
    metrics |= _bin_metrics(a[:, : bins.n], b[:, : bins.n], "log_sfr")
    metrics |= _bin_metrics(a[:, bins.n :], b[:, bins.n :], "logzsol")
    difference = calc_correlation(a) - calc_correlation(b)
    metrics["correlation_rms"] = _metric(
        float(np.sqrt(np.mean(difference**2))), CORRELATION_RMS_LIMIT
    )
    metrics["correlation_max"] = _metric(float(np.abs(difference).max()), CORRELATION_MAX_LIMIT)
    rms, expected = (calc_burstiness(v[:, : bins.n], bins) for v in (a, b))
    metrics["burstiness"] = _metric(
        abs(rms / max(expected, 1e-12) - 1), BURSTINESS_LIMIT, draws_dex=rms, test_dex=expected
    )
    return metrics | _classifier_metrics(draws, truth, bins, seed)


def draw_histories(prior: Prior, n: int, seed: int = 0, progress: bool = False) -> Histories:
    """n draws of a prior as NumPy arrays [n, bin]; SamplingError when any is not finite."""
    import torch
    from tqdm import tqdm

    generator = torch.Generator().manual_seed(seed)
    parts = []
    with tqdm(total=n, unit="draw", disable=not progress) as bar:
        for start in range(0, n, BATCH):
            parts.append(prior.sample_x(min(BATCH, n - start), generator).cpu().double())
            bar.update(len(parts[-1]))
    x = torch.cat(parts)
    bad = int((~torch.isfinite(x).flatten(1).all(dim=1)).sum())
    if bad:
        raise SamplingError(
            f"expected finite draws of {prior.name}, got {bad} of {n} that are not; train it again"
        )
    drawn = prior.scaling.from_x(x)
    return Histories(drawn.sfr.numpy(), drawn.logzsol.numpy())


def evaluate(
    prior: Prior | str | Path,
    trainingset_path: str | Path,
    out_path: str | Path | None = None,
    n_draws: int = 20_000,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Quality of a prior (or the one of that name or path) against a set's test histories.

    Returns a JSON-serialisable dict: `metrics` maps each name of the module's table to `value`,
    `threshold` and `passed`; `passed` is True when all are. `out_path` receives it as JSON, and
    the figure of `plot_quality` beside it (suffix .png).

    Raises ArtifactError for a missing prior or set, Incompatible for sets on other bins,
    SamplingError for draws that are not finite, SfhzooError without scikit-learn.
    """
    if isinstance(prior, str | Path):
        prior = load_prior(prior)
    data = trainingset.load(trainingset_path)
    if data.bins.n != prior.bins.n or data.bins.age_today != prior.bins.age_today:
        raise Incompatible(
            f"expected a training set on the {prior.bins.n} bins ({prior.bins.cosmology}) of "
            f"{prior.name}, got {data.bins.n} ({data.bins.cosmology}); evaluate it on its own set"
        )
    truth = Histories(*(v.astype(float) for v in data.histories("test")))
    truth = truth._replace(logzsol=np.maximum(truth.logzsol, prior.scaling.logzsol_floor))
    draws = draw_histories(prior, n_draws, seed, progress)
    metrics = calc_metrics(draws, truth, prior.bins, seed)
    result = {
        "schema": SCHEMA,
        "prior": prior.name,
        "sha256": prior.sha256,
        "training_set": {"name": data.attributes.get("name", ""), "sha256": data.sha256},
        "n_draws": n_draws,
        "n_test": len(truth.sfr),
        "seed": seed,
        "date": datetime.now(UTC).date().isoformat(),
        "metrics": metrics,
        "passed": all(m["passed"] for m in metrics.values()),
    }
    if out_path is not None:
        write_json(Path(out_path), result)
        figure = plot_quality(draws, truth, prior.bins)
        figure.savefig(Path(out_path).with_suffix(".png"), dpi=150)
    return result


def format_report(result: dict[str, Any]) -> str:
    """The result of `evaluate` as a Markdown table."""
    rows = [
        f"{result['prior']}: {result['n_draws']} draws against {result['n_test']} test histories "
        f"of {result['training_set']['name']} (seed {result['seed']}, {result['date']})",
        "",
        "| metric | value | threshold | passed | note |",
        "|---|---|---|---|---|",
    ]
    for name, m in result["metrics"].items():
        notes = {k: v for k, v in m.items() if k not in ("value", "threshold", "passed")}
        note = ", ".join(
            f"{k} {v}" if isinstance(v, int) else f"{k} {v:.4f}" for k, v in notes.items()
        )
        verdict = "yes" if m["passed"] else "**no**"
        rows.append(f"| {name} | {m['value']:.4f} | {m['threshold']} | {verdict} | {note} |")
    verdict = "All thresholds are met." if result["passed"] else "Not all thresholds are met."
    return "\n".join([*rows, "", verdict, ""])


def _plot_quantities(axes: Any, draws: Histories, truth: Histories, bins: TimeBins) -> None:
    ours, theirs = calc_quantities(draws, bins), calc_quantities(truth, bins)
    styles: list[tuple[dict[str, Array], dict[str, Any]]] = [
        (theirs, {"color": "0.75", "histtype": "stepfilled", "label": "test"}),
        (ours, {"color": "C0", "histtype": "step", "label": "draws"}),
    ]
    for ax, (name, label) in zip(axes, QUANTITIES.items(), strict=True):
        lo, hi = np.nanpercentile(theirs[name], [0.05, 99.95])
        edges = np.linspace(lo - 1e-6, hi + 1e-6, 61)
        for values, style in styles:
            ax.hist(values[name][np.isfinite(values[name])], edges, density=True, **style)
        ax.set(xlabel=label, yticks=[])
    axes[0].legend(frameon=False)


def _plot_bins(ax: Axes, ours: Array, theirs: Array, bins: TimeBins, label: str) -> None:
    mean, spread = theirs.mean(axis=0), theirs.std(axis=0)
    ax.fill_between(bins.centres, mean - spread, mean + spread, color="0.85", lw=0)
    ax.plot(bins.centres, mean, color="0.5")
    mean, spread = ours.mean(axis=0), ours.std(axis=0)
    ax.plot(bins.centres, mean, "C0")
    ax.plot(bins.centres, np.stack([mean - spread, mean + spread], axis=1), "C0--", lw=1)
    ax.set(xlabel="cosmic time [Gyr]", ylabel=label)


def plot_quality(draws: Histories, truth: Histories, bins: TimeBins) -> Figure:
    """Derived quantities, mean and spread per bin, and the correlations, draws against truth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), layout="constrained")
    axes = figure.subplots(2, 4)
    _plot_quantities(axes.flat[:5], draws, truth, bins)
    a, b, n = calc_columns(draws), calc_columns(truth), bins.n
    label = r"$\log({\rm SFR}+10^{-4})$: mean ± std"
    _plot_bins(axes[1, 1], a[:, :n], b[:, :n], bins, label)
    label = r"$\log\,Z/Z_\odot$: mean ± std"
    _plot_bins(axes[1, 2], a[:, n:], b[:, n:], bins, label)
    difference = calc_correlation(a) - calc_correlation(b)
    limit = CORRELATION_MAX_LIMIT
    image = axes[1, 3].imshow(difference, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes[1, 3].set(xlabel="x: SFR bins, then Z bins", title="correlation, draws - test")
    figure.colorbar(image, ax=axes[1, 3])
    return figure
