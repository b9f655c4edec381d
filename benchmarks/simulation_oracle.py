"""Samplers against the exact posterior, known from more than a million simulated histories.

    sfhzoo simulation build recipe.toml --out bank.zarr     (the prior's recipe, another seed)
    python benchmarks/simulation_oracle.py --bank work/diffstarpop-tng-v1.zarr bank.zarr \
        --mocks work/diffstarpop-tng-v1.zarr --sampler amortized pnpdm

At a total S/N of 5 and 20 over 380 coarse pixels (R = 500, rest 3800 to 8700 Å, constant noise)
the likelihood of every history of the bank, times nothing, is its posterior weight: the bank was
drawn from the prior's population. A_V is fixed, or free, then integrated out on a grid of 81
nodes under the prior of the fit; sigma_v, velocity and error scale are fixed. Mocks are test
histories, which neither the prior nor the bank holds. Per mock and quantity: the largest distance
between the weighted and the sampler's cumulative distributions (KS), to be at most 0.1. Mocks on
which fewer than 500 histories carry the posterior (effective size) are dropped and counted.

The likelihoods are cached beside the first bank. The log sSFR is per mass formed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from named_samplers import build_sampler
from numpy.typing import NDArray

import sfhzoo
from sfhzoo import histories
from sfhzoo.errors import SamplingError
from sfhzoo.forward.csp import calc_metallicity_weights
from sfhzoo.forward.model import ForwardModel
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.problem import Problem
from sfhzoo.simulations import trainingset

Array = NDArray[np.float64]

REDSHIFT, SIGMA_V, A_V = 0.1, 150.0, 0.3
N_PIXELS, REST_RANGE, LSF_SIGMA = 380, (3800.0, 8700.0), 255.0
"""Pixels, Å, and R = 500 in km/s."""
A_V_NODES = np.linspace(0.0, nuisance.A_V_MAX, 81)
RANK = 40
"""Components kept of the spectra. At a total S/N of 20 the rest of 1500 test spectra with A_V from
0 to 4 is at most 0.011 of the noise (median 0.0024)."""
SNR = (5.0, 20.0)
WANTED, CANDIDATES = 20, 40
MIN_EFFECTIVE = 500
MAX_KS = 0.1
CHUNK = 4_000
QUANTITIES = ("log_mass_formed", "age_mass_weighted", "t50", "log_ssfr_1gyr",
              "logzsol_mass_weighted")  # fmt: skip


def calc_quantities(sfr: Array, logzsol: Array, model: ForwardModel) -> Array:
    """[quantity, history] of histories [history, bin]."""
    bins, now = model.bins, model.cosmic_time
    formed = histories.calc_mass_formed(sfr, bins, now)
    return np.stack([
        np.log10(formed),
        histories.calc_age_mass_weighted(sfr, bins, now),
        histories.calc_formation_quantile(sfr, bins, now, 0.5),
        np.log10(histories.calc_ssfr(sfr, bins, now, formed)),
        histories.calc_logzsol_mass_weighted(sfr, logzsol, bins, now),
    ])  # fmt: skip


def calc_weighted_ks(values: Array, weights: Array, samples: Array) -> float:
    """Largest distance of the weighted values' cumulative distribution from the samples'."""
    order = np.argsort(values, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(weights[order]) / weights.sum()])
    at, sample = values[order], np.sort(samples)
    points = np.concatenate([at, sample])
    ours = np.searchsorted(sample, points, side="right") / len(sample)
    theirs = total[np.searchsorted(at, points, side="right")]
    return float(np.abs(ours - theirs).max())


@dataclass(frozen=True)
class Mocks:
    """Noisy spectra [mock, wave], their errors, A_V and true quantities [quantity, mock]."""

    flux: Array
    error: Array
    a_v: Array
    truth: Array


def make_mocks(
    model: ForwardModel, data: trainingset.TrainingSet, snr: float, free: bool, seed: int
) -> Mocks:
    """CANDIDATES mocks of a total S/N; A_V from its prior where it is free."""
    rng = np.random.default_rng([seed, int(10 * snr), int(free)])
    sfr, logzsol = (a.astype(float) for a in data.histories("test"))
    pick = rng.choice(len(sfr), CANDIDATES, replace=False)
    u = torch.from_numpy(rng.standard_normal((CANDIDATES, nuisance.N_NUISANCE)))
    a_v = nuisance.to_physical(u).a_v if free else torch.full((CANDIDATES,), A_V).double()
    flux = model(torch.from_numpy(sfr[pick]), torch.from_numpy(logzsol[pick]), a_v, SIGMA_V)
    clean = flux.numpy()
    error = np.sqrt((clean**2).sum(1)) / snr
    noisy = clean + error[:, None] * rng.standard_normal(clean.shape)
    return Mocks(noisy, error, a_v.numpy(), calc_quantities(sfr[pick], logzsol[pick], model))


@dataclass(frozen=True)
class Bank:
    """All histories [history, bin] and their quantities [quantity, history]."""

    sfr: NDArray[np.float32]
    logzsol: NDArray[np.float32]
    quantities: Array
    sha256: tuple[str, ...]

    @classmethod
    def load(cls, paths: list[Path], model: ForwardModel) -> Bank:
        """The training splits of several sets."""
        sets = [trainingset.load(p) for p in paths]
        parts = [s.histories("train") for s in sets]
        sfr, logzsol = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
        chunks = [slice(i, i + 50_000) for i in range(0, len(sfr), 50_000)]
        made = [calc_quantities(sfr[c].astype(float), logzsol[c].astype(float), model)
                for c in chunks]  # fmt: skip
        hashes = tuple(s.sha256 for s in sets)
        return cls(sfr, logzsol, np.concatenate(made, axis=1), hashes)


def calc_log_weights(model: ForwardModel, bank: Bank, mocks: Mocks, nodes: Array) -> torch.Tensor:
    """ln posterior weight [mock, history], A_V integrated over `nodes` (mag) under its prior."""
    templates = [model.at(float(a), SIGMA_V).flatten(0, 1) for a in nodes]
    rows = torch.cat(templates)
    norm = rows.norm(dim=1)
    # every template in units of its own size: a faint old population counts like a bright one
    basis = torch.linalg.svd(rows[norm > 0] / norm[norm > 0, None], full_matrices=False)[2][:RANK]
    unit = float(np.median(mocks.error))
    small = torch.stack([t @ basis.T / unit for t in templates], dim=1).float()
    seen = torch.from_numpy(mocks.flux) @ basis.T / unit
    ivar = torch.from_numpy((unit / mocks.error) ** 2)
    density = np.exp(-0.5 * (nodes / nuisance.A_V_SCALE) ** 2)
    density[[0, -1]] *= 0.5 if len(nodes) > 1 else 1.0  # trapezoids on equal steps
    log_prior = torch.from_numpy(np.log(density / density.sum())).float()
    out = torch.empty(len(mocks.error), len(bank.sfr))
    for start in range(0, len(bank.sfr), CHUNK):
        part = slice(start, start + CHUNK)
        weights = calc_metallicity_weights(torch.from_numpy(bank.logzsol[part]), model.nodes)
        weights = (weights * torch.from_numpy(bank.sfr[part])[..., None]).flatten(1)
        spectra = (weights @ small.flatten(1)).view(-1, len(nodes), RANK)
        # |s - y|² from products of float32 is exact where it matters, near the data
        product = torch.einsum("hnr,mr->mhn", spectra, seen.float())
        chi2 = spectra.square().sum(-1) - 2 * product + seen.square().sum(1).float()[:, None, None]
        log_l = -0.5 * chi2 * ivar.float()[:, None, None]
        out[:, part] = torch.logsumexp(log_l + log_prior, dim=-1)
    return out


def load_or_calc_weights(
    folder: Path, model: ForwardModel, bank: Bank, mocks: Mocks, free: bool
) -> NDArray[np.float32]:
    """`calc_log_weights`, kept in a file named by what it depends on."""
    nodes = A_V_NODES if free else np.array([A_V])
    parts = [mocks.flux, mocks.error, nodes, np.array([RANK, SIGMA_V, REDSHIFT])]
    key = hashlib.sha256("".join(bank.sha256).encode() + b"".join(p.tobytes() for p in parts))
    cache = folder / f"weights-{key.hexdigest()[:16]}.npy"
    if cache.exists():
        return np.load(cache)
    start = time.perf_counter()
    made = calc_log_weights(model, bank, mocks, nodes).numpy()
    print(f"{cache.name}: {time.perf_counter() - start:.0f} s", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(cache, made)
    return made


def calc_effective(log_weight: NDArray[np.float32]) -> tuple[Array, float]:
    """Normalised weights [history] and their effective number."""
    shifted = log_weight.astype(float)
    weight = np.exp(shifted - shifted.max())
    weight /= weight.sum()
    return weight, float(1 / (weight**2).sum())


def draw_from_oracle(
    bank: Bank, weight: Array, n: int, spread: float, rng: np.random.Generator
) -> Array:
    """Quantities [quantity, sample] of the oracle itself, their spread scaled about the median.

    With spread 1 the comparison must pass, with 0.5 it must fail: a test of the comparison.
    """
    found = bank.quantities[:, rng.choice(len(weight), n, p=weight)]
    middle = np.median(found, axis=1, keepdims=True)
    return middle + spread * (found - middle)


def build_draw(
    name: str, prior: Any, grid: Any, model: ForwardModel, mocks: Mocks, bank: Bank, free: bool,
    args: argparse.Namespace,
) -> Callable[[int, Array], Array]:  # fmt: skip
    """(mock, oracle weights) -> quantities [quantity, sample]; `name` may be "oracle[SPREAD]"."""
    if name.startswith("oracle"):
        spread = float(name.removeprefix("oracle") or 1.0)
        return lambda i, weight: draw_from_oracle(
            bank, weight, args.samples, spread, np.random.default_rng(i)
        )
    sampler = build_sampler(name, prior, grid, model, LSF_SIGMA, args.network)
    return lambda i, _: draw_quantities(sampler, prior, model, mocks, i, free, args.samples)


def draw_quantities(
    sampler: Any, prior: Any, model: ForwardModel, mocks: Mocks, i: int, free: bool, n: int
) -> Array:
    """Quantities [quantity, sample] of the sampler's posterior of mock `i`."""
    problem = Problem(
        model=model,
        flux=torch.from_numpy(mocks.flux[i]),
        ivar=torch.full((N_PIXELS,), float(mocks.error[i]) ** -2, dtype=torch.float64),
        scaling=prior.scaling,
        a_v=None if free else A_V,
        sigma_v=SIGMA_V,
        velocity=0.0,
        fit_error_scale=False,
    )
    draws = sampler.sample(problem, n, torch.Generator().manual_seed(i))
    x = draws.state[:, : 2 * problem.n_bins].view(-1, 2, problem.n_bins)
    sfr, logzsol = (a.numpy().astype(float) for a in problem.scaling.from_x(x))
    return calc_quantities(sfr, logzsol, model)


def compare_one(
    draw: Callable[[int], Array], bank: Bank, mocks: Mocks, i: int, weight: Array
) -> dict[str, Any]:
    """KS distance, the truth's rank in the oracle and the ratio of widths, per quantity."""
    start = time.perf_counter()
    try:
        found = draw(i)
    except SamplingError as e:
        return {"failed": str(e)}
    row: dict[str, Any] = {"seconds": time.perf_counter() - start}
    keep = weight > 1e-12 * weight.max()
    for q, name in enumerate(QUANTITIES):
        values = bank.quantities[q, keep]
        width = max(math.sqrt(np.cov(values, aweights=weight[keep])), 1e-12)
        middle = np.average(values, weights=weight[keep])
        row[f"{name}_shift"] = float(found[q].mean() - middle) / width
        row[name] = calc_weighted_ks(values, weight[keep], found[q])
        row[f"{name}_rank"] = float((weight[keep] * (values < mocks.truth[q, i])).sum())
        row[f"{name}_width"] = float(found[q].std()) / width
    return row


def compare(
    draw: Callable[[int, Array], Array], bank: Bank, mocks: Mocks,
    log_weights: NDArray[np.float32], wanted: int, title: str, store: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """Rows of the first `wanted` mocks with enough histories; how many were dropped.

    Rows found in `store` (JSON lines, by title and mock) are not made again.
    """
    lines = store.read_text(encoding="utf-8").splitlines() if store and store.exists() else []
    known = {(r["title"], r["mock"]): r for r in map(json.loads, lines)}
    rows: list[dict[str, Any]] = []
    dropped = tried = 0
    for i in range(CANDIDATES):
        if len(rows) == wanted:
            break
        tried += 1
        weight, effective = calc_effective(log_weights[i])
        if effective < MIN_EFFECTIVE:
            dropped += 1
            continue
        row = known.get((title, i))
        if row is None:
            made = compare_one(lambda k: draw(k, weight), bank, mocks, i, weight)  # noqa: B023
            row = {"title": title, "mock": i, "effective": effective, **made}
            print(json.dumps(row), flush=True)
            if store:
                with open(store, "a", encoding="utf-8") as f:
                    f.write(json.dumps(row) + "\n")
        rows.append(row)
    return {"rows": rows, "dropped": dropped, "tried": tried}


def format_table(result: dict[str, Any], title: str) -> str:
    """Markdown: KS per mock and quantity, and how many pass."""
    rows = result["rows"]
    good = [r for r in rows if "failed" not in r]
    values = np.array([[r[q] for q in QUANTITIES] for r in good])
    passed = int((values <= MAX_KS).sum()) if len(good) else 0
    seconds = np.median([r["seconds"] for r in good]) if good else float("nan")
    lines = [
        f"### {title}",
        "",
        f"{len(good)} mocks, {result['dropped']} of {result['tried']} dropped (effective size "
        f"below {MIN_EFFECTIVE}), {len(rows) - len(good)} failed; {passed} of {values.size} "
        f"distances are at most {MAX_KS}; median {seconds:.1f} s per mock.",
        "",
        "| mock | effective size | " + " | ".join(QUANTITIES) + " |",
        "|" + "---|" * (len(QUANTITIES) + 2),
    ]
    for r in rows:
        cells = [r["failed"]] if "failed" in r else [f"{r[q]:.3f}" for q in QUANTITIES]
        lines.append(f"| {r['mock']} | {r['effective']:.0f} | " + " | ".join(cells) + " |")
    if good:
        widths = [np.median([r[f"{q}_width"] for r in good]) for q in QUANTITIES]
        for name, numbers in (("median", np.median(values, 0)), ("largest", values.max(0)),
                              ("width over the oracle's, median", widths)):  # fmt: skip
            lines.append(f"| {name} | | " + " | ".join(f"{v:.3f}" for v in numbers) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bank", type=Path, nargs="+", required=True)
    parser.add_argument("--mocks", type=Path, required=True)
    parser.add_argument("--sampler", nargs="+", default=["amortized"])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--snr", type=float, nargs="+", default=list(SNR))
    parser.add_argument("--a-v", choices=["fixed", "free", "both"], default="both")
    parser.add_argument("--wanted", type=int, default=WANTED, help="mocks per setting")
    parser.add_argument("--network", type=Path, help="posterior network; default: the bundled one")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, help="write the tables here; rows beside it, to resume"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prior, grid = sfhzoo.load_prior(), sfhzoo.load_grid()
    wave = np.geomspace(*REST_RANGE, N_PIXELS) * (1 + REDSHIFT)
    model = ForwardModel(grid, wave, REDSHIFT, lsf_sigma=LSF_SIGMA, bins=prior.bins)
    bank = Bank.load(args.bank, model)
    print(f"{len(bank.sfr)} histories", flush=True)
    data = trainingset.load(args.mocks)
    tables: list[str] = []
    for free in {"fixed": [False], "free": [True], "both": [False, True]}[args.a_v]:
        for snr in args.snr:
            mocks = make_mocks(model, data, snr, free, args.seed)
            cache = args.bank[0].parent / "oracle"
            log_weights = load_or_calc_weights(cache, model, bank, mocks, free)
            for name in args.sampler:
                draw = build_draw(name, prior, grid, model, mocks, bank, free, args)
                state = "free" if free else "fixed"
                title = f"{name}, total S/N {snr:g}, A_V {state}, {args.samples} draws"
                store = args.out.with_suffix(".jsonl") if args.out else None
                result = compare(draw, bank, mocks, log_weights, args.wanted, title, store)
                tables.append(format_table(result, title))
                print(tables[-1], flush=True)
    if args.out:
        args.out.write_text("\n\n".join(tables) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
