"""Attenuation laws against the numbers of their papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfhzoo.errors import UsageError
from sfhzoo.forward.attenuation import (
    LAWS,
    Calzetti,
    Cardelli,
    Law,
    Salim,
    calc_attenuation,
    calc_calzetti_curve,
    calc_cardelli_curve,
    calc_salim_curve,
    calc_salim_r_v,
    make_law,
)

WHOLE = np.geomspace(90.0, 1e8, 5000)


def test_the_calzetti_curve_has_its_published_values() -> None:
    # k(λ) as tabulated in the literature for Calzetti et al. (2000)
    published = {1600.0: 9.97, 4862.7: 4.60, 6564.6: 3.33, 22000.0: 0.37}
    curve = 4.05 * calc_calzetti_curve(list(published))
    assert curve == pytest.approx(list(published.values()), abs=0.01)
    assert calc_calzetti_curve(5500.0) == pytest.approx(1, abs=0.005)


def test_below_its_range_the_calzetti_curve_stays_near_that_of_leitherer() -> None:
    # Leitherer et al. (2002), measured from 970 to 1800 Å: 5.472 + (0.671, -9.218e-3, 2.620e-3)
    inverse = 1e4 / np.array([1000.0, 1100.0, 1200.0])
    leitherer = (5.472 + 0.671 * inverse - 9.218e-3 * inverse**2 + 2.620e-3 * inverse**3) / 4.05
    assert calc_calzetti_curve([1000.0, 1100.0, 1200.0]) == pytest.approx(leitherer, rel=0.02)


def test_the_calzetti_curve_steps_only_where_it_was_published_with_a_step() -> None:
    jumps = np.abs(np.diff(calc_calzetti_curve(np.linspace(900.0, 40_000.0, 400_000))))
    assert np.sort(jumps)[-2] < 1e-3 and jumps.max() < 7e-3
    assert calc_calzetti_curve(40_000.0) == 0


def test_the_cardelli_law_has_the_values_of_its_table() -> None:
    # Cardelli et al. (1989), table 3, R_V = 3.1: U, B, V, R, I, J, H, K
    published = [1.569, 1.337, 1.000, 0.751, 0.479, 0.282, 0.190, 0.114]
    inverse_micron = np.array([2.78, 2.27, 1.82, 1.43, 1.11, 0.80, 0.63, 0.46])
    curve = calc_cardelli_curve(1e4 / inverse_micron)
    assert curve == pytest.approx(published, abs=0.015)


@pytest.mark.parametrize(
    ("r_v", "expected"),
    [
        (3.1, [5.23835484, 4.13406452, 2.77962453, 2.52195399, 3.18598916, 1.64254927]),
        (2.0, [9.407, 7.3065, 4.60825807, 4.01559036, 4.93952892, 2.068771]),
    ],
)
def test_the_cardelli_law_equals_an_independent_code(r_v: float, expected: list[float]) -> None:
    # dust_extinction's CCM89, at 10, 9, 7, 6, 4.6 and 3 per µm
    curve = calc_cardelli_curve(1e4 / np.array([10.0, 9.0, 7.0, 6.0, 4.6, 3.0]), r_v)
    assert curve == pytest.approx(expected, rel=1e-6)


def test_the_cardelli_law_is_joined_to_its_tangent_at_1000_angstrom() -> None:
    below, above = calc_cardelli_curve([990.0, 999.9]), calc_cardelli_curve([1000.1, 1001.0])
    assert np.diff(below)[0] / 9.9 == pytest.approx(np.diff(above)[0] / 0.9, rel=0.02)


def test_salims_law_without_slope_and_bump_is_calzettis() -> None:
    assert np.allclose(calc_salim_curve(WHOLE), calc_calzetti_curve(WHOLE), rtol=1e-12)


@pytest.mark.parametrize("slope", [-1.0, -0.45, 0.2])
def test_salims_r_v_belongs_to_its_curve(slope: float) -> None:
    # R_V = A_V / (A_B - A_V), with A_B the tilted Calzetti curve at 4400 Å (published eq. 4
    # takes Calzetti's k(B) as R_V + 1)
    r_v = calc_salim_r_v(slope)
    tilted = (4.05 + 1) / 4.05 * 0.8**slope
    assert 1 / (tilted - 1) == pytest.approx(r_v)
    curve = calc_salim_curve([4400.0, 5500.0], slope)
    assert curve[1] / (curve[0] - curve[1]) == pytest.approx(r_v, rel=0.05)


def test_salims_law_has_the_values_of_its_equations() -> None:
    # by hand from eqs 3-5, slope -0.4 and B = 2: R_V = 4.05 / (5.05 * 0.8^-0.4 - 4.05) = 2.7523
    assert calc_salim_r_v(-0.4) == pytest.approx(2.7523, abs=1e-4)
    assert calc_salim_r_v(0.0) == pytest.approx(4.05)
    bump = calc_salim_curve(2175.0, -0.4, 2.0) - calc_salim_curve(2175.0, -0.4)
    assert bump == pytest.approx(2 / 2.7523, rel=1e-4)
    half = calc_salim_curve([2007.0, 2357.0], -0.4, 2.0) - calc_salim_curve([2007.0, 2357.0], -0.4)
    # the bump's full width at half maximum is 350 Å
    assert half == pytest.approx(0.5 * bump, rel=0.01)
    tilt = calc_salim_curve(1500.0, -0.4) / calc_calzetti_curve(1500.0)
    assert tilt == pytest.approx((1500 / 5500) ** -0.4)


def test_an_smc_like_slope_is_steeper_than_the_milky_way_and_calzetti_shallower() -> None:
    # A(1500 Å)/A_V, as compiled by Salim & Narayanan (2020): SMC above 4, Milky Way below 3
    steep, milky_way, flat = (
        float(law(1500.0)) for law in (Salim(slope=-0.45), Cardelli(), Calzetti())
    )
    assert steep > 4 > 3 > milky_way > flat > 2.4


@pytest.mark.parametrize(
    "law", [Calzetti(), Cardelli(), Cardelli(5.0), Salim(-1.0, 3.0), Salim(0.4, -1.0)]
)
def test_every_law_holds_from_90_angstrom_to_1_cm(law: Law) -> None:
    curve = law(WHOLE)
    assert np.all(np.isfinite(curve)) and np.all(curve >= 0)
    assert curve[-1] < 1e-6 and curve[0] > 3
    assert law(5500.0) == pytest.approx(1, abs=0.01)


def test_a_law_is_made_from_its_name() -> None:
    assert set(LAWS) == {"calzetti", "cardelli", "salim"}
    assert make_law("calzetti") == Calzetti()
    assert make_law("salim", slope=-0.4, bump=1.0) == Salim(-0.4, 1.0)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("calzeti", {}, "expected an attenuation law among calzetti, cardelli, salim"),
        ("calzetti", {"slope": 1.0}, "expected parameters none of the law calzetti, got slope"),
        ("cardelli", {"r_v": 0.0}, "expected r_v from 2 to 6"),
        ("salim", {"slope": 1.5}, "expected slope from -1.6 to 0.6"),
        ("salim", {"bump": float("nan")}, "expected bump from -2 to 8"),
    ],
)
def test_laws_that_do_not_exist_are_usage_errors(
    name: str, parameters: dict[str, float], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_law(name, **parameters)


def test_one_magnitude_dims_the_v_band_by_one_magnitude() -> None:
    curve = torch.tensor([1.0, 0.5], dtype=torch.float64)
    transmitted = calc_attenuation(torch.tensor([0.0, 1.0], dtype=torch.float64), curve)
    assert torch.allclose(transmitted[0], torch.ones(2, dtype=torch.float64))
    assert transmitted[1].tolist() == pytest.approx([10**-0.4, 10**-0.2])
