"""sfhzoo: priors over galaxy star formation histories, and posteriors from spectra.

The public names are imported when first used, so that `import sfhzoo` loads no torch and touches
no disk.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "ForwardModel": "sfhzoo.forward.model",
    "HistoryScaling": "sfhzoo.histories",
    "Posterior": "sfhzoo.posterior",
    "Prior": "sfhzoo.priors.prior",
    "SSPGrid": "sfhzoo.grids.ssp",
    "SfhzooError": "sfhzoo.errors",
    "Spectrum": "sfhzoo.spectra.spectrum",
    "TimeBins": "sfhzoo.timebins",
    "infer": "sfhzoo.inference",
    "load_grid": "sfhzoo.zoo.artifacts",
    "load_prior": "sfhzoo.zoo.artifacts",
}

__all__ = [*sorted(_PUBLIC), "__version__"]

if TYPE_CHECKING:
    from sfhzoo.errors import SfhzooError as SfhzooError
    from sfhzoo.forward.model import ForwardModel as ForwardModel
    from sfhzoo.grids.ssp import SSPGrid as SSPGrid
    from sfhzoo.histories import HistoryScaling as HistoryScaling
    from sfhzoo.inference import infer as infer
    from sfhzoo.posterior import Posterior as Posterior
    from sfhzoo.priors.prior import Prior as Prior
    from sfhzoo.spectra.spectrum import Spectrum as Spectrum
    from sfhzoo.timebins import TimeBins as TimeBins
    from sfhzoo.zoo.artifacts import load_grid as load_grid
    from sfhzoo.zoo.artifacts import load_prior as load_prior


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sfhzoo' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
