"""`sfhzoo compare`: priors side by side, alone and on spectra.

`Comparison.write` makes one directory, whole or not at all:

    comparison.json   everything, with versions, hashes and seeds
    comparison.md     the same as tables
    histories.png     star formation histories by mass
    relations.png     masses, t50, main sequence, quenched fraction, metallicity, distances
    spectrum-*.png    histories of one galaxy under each prior
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sfhzoo.comparison import figures
from sfhzoo.comparison.distances import calc_distances
from sfhzoo.comparison.populations import Population, calc_table, draw_population
from sfhzoo.comparison.posteriors import Fits, Member, fit_spectrum, sum_bayes_factors
from sfhzoo.comparison.report import format_report
from sfhzoo.engines import check_same_histories, find_matching_network
from sfhzoo.errors import DataError, Incompatible, SamplingError, UsageError
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.inference import list_versions
from sfhzoo.likelihood.options import Options
from sfhzoo.massprior import parse_mass_prior
from sfhzoo.output import Layout, check_output, written_whole
from sfhzoo.posterior import to_plain
from sfhzoo.priors.prior import Prior
from sfhzoo.spectra.spectrum import Spectrum
from sfhzoo.zoo.artifacts import (
    DEFAULT_GRID,
    identity_of,
    load_grid,
    load_posterior_network,
    load_prior,
)

SCHEMA = 1
LAYOUT = Layout(
    ("comparison.json", "comparison.md", "histories.png", "relations.png", "spectrum-*.png"),
    "comparison.json",
    ("schema", "distances", "populations"),
)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    populations : draws of each prior, in the order given
    fits : of each spectrum
    result : the content of comparison.json
    """

    populations: tuple[Population, ...]
    fits: tuple[Fits, ...]
    result: dict[str, Any]

    def warnings(self) -> list[str]:
        """A line for each thing to know of the spectra; those that nothing explains come first."""
        flags = [fit.flag for fit in self.fits if fit.flag]
        told = [w for fit in self.fits for w in fit.warnings]
        failed = [f"{f['object']} is left out: {f['error']}" for f in self.result["failed"]]
        return [*failed, *flags, *told, *(w for fit in self.fits for w in _list_warnings(fit))]

    def write(self, directory: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write all files and return the directory; OutputError where it must not be replaced."""
        target = check_output(directory, overwrite, LAYOUT)
        populations, tables = list(self.populations), self.result["populations"]
        with written_whole(target) as scratch:
            text = json.dumps(self.result, indent=1, ensure_ascii=False, allow_nan=False)
            (scratch / "comparison.json").write_text(text + "\n", encoding="utf-8")
            (scratch / "comparison.md").write_text(format_report(self.result), encoding="utf-8")
            figures.plot_histories(populations, tables).savefig(scratch / "histories.png")
            relations = figures.plot_relations(populations, tables, self.result["distances"])
            relations.savefig(scratch / "relations.png")
            for fit, told in zip(self.fits, self.result["spectra"]):
                figures.plot_posteriors(fit.posteriors).savefig(scratch / told["figure"])
        return target


def _list_warnings(fit: Fits) -> list[str]:
    """The posteriors' warnings; what all priors say is said once."""
    labels: dict[str, list[str]] = {}
    for label, posterior in fit.posteriors.items():
        for warning in posterior.summary()["warnings"]:
            labels.setdefault(warning, []).append(label)
    everywhere, name = list(fit.posteriors), fit.spectrum.name
    return [
        f"{name}: {w}" if by == everywhere else f"{name} under {', '.join(by)}: {w}"
        for w, by in labels.items()
    ]


def compare(
    priors: Sequence[str | Path],
    spectra: Sequence[Spectrum] = (),
    *,
    grid: str | Path = DEFAULT_GRID,
    networks: Mapping[str, Path] | None = None,
    draws: int = 4000,
    samples: int = 200,
    evidence: bool = True,
    mass_prior: str = "flat",
    seed: int = 0,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Comparison:
    """Compare at least two priors, by names or paths; with spectra, their posteriors too.

    Parameters
    ----------
    spectra : each with a redshift
    networks : posterior network of a prior, by its name or path as in `priors`; by default the one
        on this disk that fits, else the slower sampler
    draws : of each prior; samples : of each posterior
    evidence : estimate the evidence of each prior for each spectrum
    mass_prior : the common mass prior of the second set of evidences
    say : gets a line before each step
    options : of the fits, fields of `Options` but `jitter`, the same under every prior

    Raises UsageError for fewer than two priors or the same one twice, ArtifactError where one is
    missing, Incompatible where their bins of time differ, DataError or SamplingError where no
    spectrum can be fitted; of several, those that cannot are in the result's "failed".
    """
    chosen = Options(**options)
    if parse_mass_prior(mass_prior) is None:
        raise UsageError(
            f"expected a mass prior that all priors can share (flat, schechter, ...), got "
            f"{mass_prior!r}"
        )
    members = load_members(priors, networks or {})
    for spectrum in spectra:
        if spectrum.redshift is None:
            raise DataError(f"{spectrum.name} has no redshift; give one with --redshift")
    loaded_grid = load_grid(grid) if spectra else None
    populations = {}
    for m in members:
        say(f"drawing {draws} galaxies of {m.label}")
        populations[m.label] = draw_population(m.prior, m.label, draws, seed, progress)
    say("distances")
    distances = calc_distances(list(populations.values()), seed, progress)
    fits, failed = [], []
    for i, spectrum in enumerate(spectra):
        assert loaded_grid is not None
        try:
            fits.append(fit_spectrum(
                spectrum, members, populations, loaded_grid, samples=samples, evidence=evidence,
                mass_prior=mass_prior, seed=seed, progress=progress, say=say, **options,
            ))  # fmt: skip
        except (DataError, SamplingError) as e:
            if i == len(spectra) - 1 and not fits:
                raise type(e)(f"{spectrum.name}: {e}") from e
            failed.append({"object": spectrum.name, "error": str(e)})
            say(f"{spectrum.name} is left out: {e}")
    found = [fit.as_dict() for fit in fits]
    names = name_figures(fits)
    result = {
        **_describe(members, loaded_grid, populations),
        "draws": draws,
        "seed": seed,
        "mass_prior": mass_prior if evidence and spectra else None,
        "distances": distances,
        "populations": {label: calc_table(p) for label, p in populations.items()},
        "spectra": [{**s, "figure": name} for s, name in zip(found, names)],
        "failed": failed,
        "options": vars(chosen),
        "bayes_factors": sum_bayes_factors(found, [m.label for m in members]),
    }
    return Comparison(tuple(populations.values()), tuple(fits), to_plain(result))


def load_members(priors: Sequence[str | Path], networks: Mapping[str, Path]) -> list[Member]:
    """The priors and their networks, checked against each other; raises as `compare`."""
    if len(priors) < 2:
        raise UsageError(f"expected at least two priors, got {len(priors)}")
    unknown = sorted(set(networks) - {str(p) for p in priors})
    if unknown:
        raise UsageError(
            f"a network is given for {unknown[0]!r}, which is not compared; expected one of "
            f"{', '.join(map(str, priors))}"
        )
    loaded = [load_prior(p) for p in priors]
    _check_distinct(loaded)
    _check_bins(loaded)
    names = [p.name for p in loaded]
    labels = names if len(set(names)) == len(names) else [str(p) for p in priors]
    for given, prior in zip(priors, loaded):
        # a damaged or foreign one is found before an hour of work
        if path := networks.get(str(given)):
            check_same_histories(load_posterior_network(path), prior)
    return [
        Member(label, prior, networks.get(str(given)))
        for label, prior, given in zip(labels, loaded, priors)
    ]


def _check_distinct(priors: list[Prior]) -> None:
    seen: dict[str, str] = {}
    for prior in priors:
        if prior.sha256 in seen:
            raise UsageError(
                f"expected different priors, got {prior.name} twice (sha256 {prior.sha256[:12]}…)"
            )
        seen[prior.sha256] = prior.name


def _check_bins(priors: list[Prior]) -> None:
    first = priors[0].bins
    for prior in priors[1:]:
        if (prior.bins.n, prior.bins.age_today) != (first.n, first.age_today):
            raise Incompatible(
                f"expected priors on the same bins of time, got {first.n} ({first.cosmology}) of "
                f"{priors[0].name} and {prior.bins.n} ({prior.bins.cosmology}) of {prior.name}; "
                "train one of them on the other's"
            )


def name_figures(fits: Sequence[Fits]) -> list[str]:
    """File names of the spectra's figures, in their order; numbered where names repeat."""
    names: list[str] = []
    for fit in fits:
        stem = re.sub(r"[^A-Za-z0-9.+-]+", "-", fit.spectrum.name).strip("-.") or "unnamed"
        name = f"spectrum-{stem}.png"
        while name in names:
            stem += "-2"
            name = f"spectrum-{stem}.png"
        names.append(name)
    return names


def _identify_network(member: Member, grid: SSPGrid | None) -> str | None:
    """sha256 of the posterior network that serves a prior; None without spectra or network."""
    if grid is None:
        return None
    path = member.network or find_matching_network(member.prior, grid)
    return identity_of(path) if path else None


def _describe(
    members: list[Member], grid: SSPGrid | None, populations: dict[str, Population]
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {**list_versions(), "scikit-learn": version("scikit-learn")},
        "priors": [
            {
                "label": m.label,
                "name": m.prior.name,
                "sha256": m.prior.sha256,
                "training_set": m.prior.training_set,
                "network": _identify_network(m, grid),
                "n_empty": populations[m.label].n_empty,
            }
            for m in members
        ],
        "grid": None if grid is None else {"name": grid.name, "sha256": grid.sha256},
        "cosmology": str(members[0].prior.bins.cosmology),
        "n_bins": members[0].prior.bins.n,
    }
