"""The dust's own light: Draine & Li's (2007) tables, energy balance, and BAGPIPES.

`data/bagpipes_dust.npz` holds spectra of BAGPIPES 1.3.6 for the four dust models of
`benchmarks/parity_dust.py`, which made it: `wave` (observed Å) and fluxes (erg/s/cm²/Å).
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fakegrid import REDSHIFT, WAVE_OBS, make_grid
from galaxies import load_grid
from numpy.typing import NDArray

from sfhzoo.errors import GridError, UsageError
from sfhzoo.forward.attenuation import Salim
from sfhzoo.forward.dust_emission import TEMPLATES, DustEmission, read_templates
from sfhzoo.forward.model import ForwardModel, calc_spectrum

ROOT = Path(__file__).parents[1]
REFERENCE = Path(__file__).parent / "data" / "bagpipes_dust.npz"
INFRARED = np.geomspace(5e3, 5e6, 400)


def load_parity():
    spec = importlib.util.spec_from_file_location(
        "parity_dust", ROOT / "benchmarks" / "parity_dust.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> ForwardModel:
    return ForwardModel(load_grid(), INFRARED, REDSHIFT, velocity_step=600.0)


def make_histories(n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    sfr = torch.rand(n, 64, generator=generator, dtype=torch.float64)
    return sfr, 1.4 * torch.rand(n, 64, generator=generator, dtype=torch.float64) - 1.0


# ---- the templates


@pytest.mark.parametrize("emission", [DustEmission(), DustEmission(0.1, 25.0, 1.0)])
def test_the_template_holds_one_unit_of_energy_between_1_micron_and_1_cm(
    emission: DustEmission,
) -> None:
    wave = np.geomspace(1e4, 1e8, 200_001)
    assert np.trapezoid(emission(wave), wave) == pytest.approx(1, rel=1e-4)
    assert emission([9_900.0, 1.1e8]).tolist() == [0, 0]


def test_the_dust_emits_in_proportion_to_the_starlight_it_gets() -> None:
    # per hydrogen atom; and a U^-2 distribution from umin to 1e6 has ln(1e6/umin) times the mean
    # of one field (Draine & Li 2007, eq. 23)
    tables = read_templates()
    single = np.trapezoid(tables.single, tables.wave)
    assert single / single[:, :1] == pytest.approx(
        np.broadcast_to(tables.umin / tables.umin[0], single.shape), rel=0.005
    )
    ratio = np.trapezoid(tables.power_law, tables.wave) / single
    expected = np.log(1e6 / tables.umin) / (1 - tables.umin / 1e6)
    assert ratio == pytest.approx(np.broadcast_to(expected, ratio.shape), rel=0.005)


def test_more_pahs_shine_at_8_micron_and_more_starlight_makes_dust_hotter() -> None:
    assert DustEmission(4.5)(7.7e4) > 5 * DustEmission(0.5)(7.7e4)

    def peak(emission: DustEmission) -> float:
        wave = np.geomspace(4e5, 1e7, 2000)
        return float(wave[np.argmax(wave * emission(wave))])

    # T ~ U^(1/6), so the peak moves from 25 to 0.1 by a factor 2.5
    assert peak(DustEmission(umin=0.1)) / peak(DustEmission(umin=25.0)) == pytest.approx(2.5, 0.1)
    assert DustEmission(gamma=0.2)(2.4e5) > 3 * DustEmission(gamma=0.0)(2.4e5)


def test_between_nodes_the_emissivity_is_linear() -> None:
    middle = DustEmission(qpah=3.545, gamma=0.0).calc_template()[1]
    tables = read_templates()
    ends = [tables.single[list(tables.qpah).index(q), 8] for q in (3.19, 3.90)]
    expected = ends[0] + ends[1]
    assert middle == pytest.approx(expected / np.trapezoid(expected, tables.wave), rel=1e-9)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"qpah": 5.0}, "qpah from 0.1 to 4.58"),
        ({"umin": 0.0}, "umin from 0.1 to 25"),
        ({"gamma": -0.1}, "gamma from 0 to 1"),
        ({"gamma": float("nan")}, "gamma from 0 to 1"),
    ],
)
def test_emission_outside_the_tables_is_refused(parameters, message) -> None:
    with pytest.raises(UsageError, match=message):
        DustEmission(**parameters)


def test_the_packed_tables_are_small() -> None:
    assert TEMPLATES.stat().st_size < 2e6


# ---- energy balance


def calc_energy(model: ForwardModel, flux: torch.Tensor, a: float, b: float) -> NDArray:
    """Flux [...] between rest wavelengths a and b (Å), erg/s/cm²."""
    use = (model.wave_obs > a * (1 + REDSHIFT)) & (model.wave_obs < b * (1 + REDSHIFT))
    return np.trapezoid(flux.numpy()[..., use], model.wave_obs[use])


def test_what_dust_takes_from_the_stars_it_gives_back() -> None:
    whole = ForwardModel(
        load_grid(), np.geomspace(91.0, 9e7, 6000) * (1 + REDSHIFT), REDSHIFT, velocity_step=600.0
    )
    sfr, logzsol = make_histories()
    clear, dusty = (whole(sfr, logzsol, a, 100.0) for a in (0.0, 1.2))
    assert calc_energy(whole, dusty, 91, 9e7) == pytest.approx(
        calc_energy(whole, clear, 91, 9e7), rel=2e-3
    )
    taken = calc_energy(whole, clear - dusty, 91, 1e4)
    assert np.all(taken > 0.3 * calc_energy(whole, clear, 91, 9e7))


def test_without_dust_there_is_no_emission(model: ForwardModel) -> None:
    sfr, logzsol = make_histories()
    stars = ForwardModel(load_grid(), INFRARED, REDSHIFT, velocity_step=600.0, dust_emission=None)
    assert torch.equal(model(sfr, logzsol, 0.0, 100.0), stars(sfr, logzsol, 0.0, 100.0))
    excess = (model(sfr, logzsol, 1.0, 100.0) / stars(sfr, logzsol, 1.0, 100.0)).numpy()
    rest = INFRARED / (1 + REDSHIFT)
    assert np.all(excess[:, rest < 9.9e3] == 1)
    assert np.all(excess[:, (rest > 6e4) & (rest < 1e6)] > 5)


def test_the_fast_path_includes_the_emission(model: ForwardModel) -> None:
    sfr, logzsol = make_histories()
    fast = calc_spectrum(sfr, logzsol, model.at(0.8, 180.0), model.nodes)
    assert torch.allclose(fast, model(sfr, logzsol, 0.8, 180.0), rtol=1e-9, atol=0)


def test_a_batch_with_dust_gives_what_its_members_give(model: ForwardModel) -> None:
    sfr, logzsol = make_histories()
    a_v = torch.tensor([0.1, 2.0], dtype=torch.float64)
    batch = model(sfr, logzsol, a_v, 100.0)
    for i in range(2):
        one = model(sfr[i], logzsol[i], float(a_v[i]), 100.0)
        assert torch.allclose(batch[i], one, rtol=1e-9, atol=0)


def test_the_emission_is_differentiable_in_dust_and_star_formation(model: ForwardModel) -> None:
    sfr, logzsol = make_histories(1)
    inputs = [sfr[0].requires_grad_(), torch.tensor(0.6, dtype=torch.float64).requires_grad_()]
    scale = 1 / model(sfr[0], logzsol[0], 0.6, 100.0).detach()

    def few(sfr: torch.Tensor, a_v: torch.Tensor) -> torch.Tensor:
        return (model(sfr, logzsol[0], a_v, 100.0) * scale)[[100, 200, 300, 380]]

    assert torch.autograd.gradcheck(few, inputs, eps=1e-6, atol=1e-6, rtol=1e-4)
    slope = torch.autograd.grad(few(*inputs)[-1], inputs[1])[0]
    # far-infrared light grows with A_V, less than in proportion
    assert 0.1 < float(slope) * 0.6 < 1


def test_optical_spectra_pay_nothing_and_need_no_ultraviolet() -> None:
    model = ForwardModel(make_grid(), WAVE_OBS, REDSHIFT)
    assert model.emission is None
    with pytest.raises(ValueError, match="beyond 1 µm"):
        model.calc_absorbed(1.0)


def test_a_grid_without_the_ultraviolet_cannot_balance_energy() -> None:
    grid = make_grid()
    with pytest.raises(GridError, match="912 to 31000 Å"):
        ForwardModel(grid, np.geomspace(7e3, 1.1e4, 50), 0.01)
    assert ForwardModel(grid, np.geomspace(7e3, 1.1e4, 50), 0.01, dust_emission=None)


def test_the_law_changes_what_is_absorbed(model: ForwardModel) -> None:
    steep = ForwardModel(
        load_grid(), INFRARED, REDSHIFT, velocity_step=600.0, law=Salim(slope=-0.6)
    )
    ratio = (steep.calc_absorbed(0.3) / model.calc_absorbed(0.3)).numpy()
    youngest = np.flatnonzero(model.bins.overlap(model.cosmic_time) > 0)[-1]
    # a steep law takes more of the ultraviolet and less of the red
    assert np.all(ratio[youngest] > 1.05) and np.all(ratio[0, -2:] < 0.9)
    assert torch.equal(steep.emission, model.emission)


# ---- parity with BAGPIPES


def check_parity(ours: NDArray, theirs: NDArray, rest: NDArray) -> None:
    """rms of the difference at most 1 % in every range, features included."""
    for a, b in ((1e3, 3e3), (3e3, 1e4), (1e4, 3e4), (3e4, 3e5), (3e5, 1e7)):
        use = (rest >= a) & (rest <= b)
        assert np.sqrt(np.mean((ours[use] / theirs[use] - 1) ** 2)) < 0.01, (a, b)


@pytest.mark.parametrize("name", ["calzetti", "calzetti_thin", "cardelli", "salim"])
def test_bagpipes_spectra_from_1000_angstrom_to_1_mm_are_reproduced(name: str) -> None:
    parity = load_parity()
    with np.load(REFERENCE) as file:
        theirs = file[name].astype(float)
        assert file["wave"] == pytest.approx(parity.WAVE)
    ours = parity.calc_ours(parity.CASES[name], load_grid())
    check_parity(ours, theirs, parity.WAVE / (1 + parity.REDSHIFT))


@pytest.mark.parity
def test_the_installed_bagpipes_is_reproduced(tmp_path: Path) -> None:
    if importlib.util.find_spec("bagpipes") is None:
        pytest.skip("bagpipes is not installed")
    out = tmp_path / "dust.npz"
    # a process of its own: the package prints, warns and makes a directory when imported
    script = ROOT / "benchmarks" / "parity_dust.py"
    subprocess.run(
        [sys.executable, str(script), "--case", "salim", "--out", str(out)],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    parity = load_parity()
    with np.load(out) as file:
        theirs = file["salim"].astype(float)
    ours = parity.calc_ours(parity.CASES["salim"], load_grid())
    check_parity(ours, theirs, parity.WAVE / (1 + parity.REDSHIFT))
