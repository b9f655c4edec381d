"""A few spectra that span all templates, and an orthonormal basis of what the pixels see of them.

Random combinations of templates find the span (Halko, Martinsson & Tropp 2011, SIAM Review 53,
217), each in proportion to the light it may give.
"""

from __future__ import annotations

import torch
from torch import Tensor

N_PROBES = 420
SPAN_TOLERANCE = 1e-5
"""Relative error with which a few spectra stand for all templates."""
TOLERANCE = 1e-3
"""chi² of a typical spectrum that the discarded directions may hold in total."""


def factorise(templates: Tensor) -> tuple[Tensor, Tensor]:
    """(spectra [spectrum, fine], coefficients [template, spectrum]) with templates their product.

    Populations of similar age look alike: far fewer spectra than templates need broadening.
    """
    norm = templates.norm(dim=1, keepdim=True).clamp(min=1e-300)
    unit = templates / norm
    values, axes = torch.linalg.eigh(unit @ unit.T)
    keep = values > SPAN_TOLERANCE**2 * values[-1]
    axes = axes[:, keep]
    return axes.T @ unit, axes * norm


def calc_light(sfr: Tensor, n_nodes: int) -> Tensor:
    """SFR [bin * metallicity] that each template may stand for, for a typical `sfr` [bin]."""
    return (sfr + 0.02 * sfr.mean()).repeat_interleave(n_nodes)


def choose_basis(
    kinds: list[Tensor], light: Tensor, dust: list[Tensor], generator: torch.Generator
) -> Tensor:
    """Orthonormal rows [component, wave] that hold all templates up to `TOLERANCE` in chi².

    Parameters
    ----------
    kinds : whitened spectra [spectrum, wave], one tensor per way the velocities may change them
    light : [template, spectrum] of each template
    dust : transmissions [wave]
    generator : of the random combinations
    """
    per_kind = max(N_PROBES // len(dust) // len(kinds) + 1, 24)
    probes = []
    for d in dust:
        for kind in kinds:
            mix = torch.randn((per_kind, len(light)), generator=generator, dtype=torch.float64)
            probes.append(((mix @ light) @ kind) * d)
    rows = torch.cat(probes)
    values, axes = torch.linalg.eigh(rows @ rows.T)
    rest = values.clamp(min=0).cumsum(0) / len(rows)
    rank = max(int((rest > TOLERANCE).sum()), 8)
    # the squares hide small directions from the eigenvalues, so they are made orthogonal anew
    return torch.linalg.qr((axes[:, -rank:].T @ rows).T)[0].T
