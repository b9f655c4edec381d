"""Populations, distances and Bayes factors of priors, against closed forms and known answers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from galaxies import make_histories

from sfhzoo.comparison import distances, explanation, populations, posteriors
from sfhzoo.comparison.explanation import Explanation
from sfhzoo.errors import SamplingError
from sfhzoo.histories import Histories
from sfhzoo.posterior import DERIVED, Parameter
from sfhzoo.timebins import TimeBins

BINS = TimeBins()


def make(n, seed, label="a"):
    """Galaxies of 1e9 to 1e11 Msun whose shapes do not depend on mass."""
    return populations.make_population(label, Histories(*make_histories(n, seed)), BINS)


# ---- populations --------------------------------------------------------------------------------


def test_the_error_of_a_median_is_that_of_a_normal_sample():
    values = np.random.default_rng(1).normal(3, 2, 40_000)
    found = populations.calc_median(values)
    assert found["error"] == pytest.approx(np.sqrt(np.pi / 2) * 2 / 200, rel=0.1)
    assert found["median"] == pytest.approx(3, abs=4 * found["error"])
    assert found["p84"] - found["p16"] == pytest.approx(2 * 2 * 0.9945, rel=0.03)


def test_a_fraction_of_zero_has_an_error_and_a_half_the_binomial_one():
    none = populations.calc_fraction(np.zeros(100, bool))
    assert none["value"] == 0 and 0.009 < none["error"] < 0.011
    half = populations.calc_fraction(np.arange(1000) % 2 == 0)
    assert half["error"] == pytest.approx(np.sqrt(0.25 / 1000), rel=0.01)


def test_a_table_has_the_closed_forms_of_constant_star_formation_in_its_mass_bin():
    # 1 Msun/yr until today is 10^10.14 Msun formed
    drawn = Histories(np.ones((30, 64)), np.full((30, 64), -0.2))
    rows = populations.calc_table(populations.make_population("a", drawn, BINS))
    here = next(row for row in rows if row["log_mass"] == [10.0, 10.5])
    assert here["n"] == 30 and sum(row["n"] for row in rows) == 30
    assert here["t50"]["median"] == pytest.approx(BINS.age_today / 2)
    assert here["log_sfr"]["median"] == pytest.approx(0)
    assert here["logzsol"]["median"] == pytest.approx(-0.2)
    assert here["quenched"]["value"] == 0
    assert here["log_sfr_history"]["p84"] == pytest.approx(np.zeros(64), abs=1e-4)
    assert all(row["t50"] is None for row in rows if row is not here)


def test_galaxies_are_quenched_below_an_ssfr_of_1e11_and_then_not_on_the_main_sequence():
    sfr = np.ones((60, 64))
    mass = 1e9 * BINS.age_today
    # half of them at 0.9, half at 1.1 times the limit
    sfr[:, -1] = 0.6e-11 * mass * np.repeat([0.9, 1.1], 30)
    found = populations.make_population("a", Histories(sfr, 0 * sfr), BINS)
    assert found.quenched.tolist() == [True] * 30 + [False] * 30
    row = next(r for r in populations.calc_table(found) if r["n"])
    assert row["log_sfr"]["median"] == pytest.approx(np.log10(sfr[-1, -1]))
    assert row["quenched"]["value"] == 0.5


def test_draws_without_stars_are_counted_and_left_out():
    sfr, logzsol = make_histories(10, 1)
    sfr[:3] = 0
    found = populations.make_population("a", Histories(sfr, logzsol), BINS)
    assert found.n_empty == 3 and len(found.log_mass) == 7 and np.isfinite(found.t50).all()
    with pytest.raises(SamplingError, match="with stars, got none"):
        populations.make_population("a", Histories(0 * sfr, logzsol), BINS)


def test_related_priors_are_drawn_with_noise_of_their_own():
    a, b = (SimpleNamespace(name=f"prior-{k}", sha256=k) for k in "ab")
    assert populations.calc_seed(0, a) != populations.calc_seed(0, b)
    assert populations.calc_seed(0, a) == populations.calc_seed(0, a)
    assert populations.calc_seed(1, a) != populations.calc_seed(0, a)


# ---- distances ----------------------------------------------------------------------------------


def test_the_distance_is_the_shift_and_the_change_of_width_in_standard_deviations():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1000, 12))
    u = distances.draw_directions(12, rng, 600)
    a = (x @ u).T
    assert distances.calc_sliced_wasserstein(a, a[:, ::-1]) == 0
    shifted = distances.calc_sliced_wasserstein(a, ((x + 0.7) @ u).T)
    assert shifted == pytest.approx(0.7, rel=0.1)
    wider = distances.calc_sliced_wasserstein(a, ((1.5 * x) @ u).T)
    assert wider == pytest.approx(0.5, rel=0.05)


def test_matched_sets_have_the_same_masses_and_no_galaxy_twice():
    rng = np.random.default_rng(3)
    a, b = rng.normal(10, 0.7, 3000), rng.normal(10.6, 0.5, 2000)
    rows = distances.match_masses(a, b, rng)
    assert len(rows[0]) == len(rows[1]) > 1000
    assert all(len(set(r.tolist())) == len(r) for r in rows)
    counts = [np.bincount(np.floor(m[r] / 0.1).astype(int)) for m, r in zip((a, b), rows)]
    assert np.array_equal(*counts)


@pytest.fixture(scope="module")
def pairs():
    """The same galaxies with other masses preferred, and galaxies of another shape."""
    pytest.importorskip("sklearn")
    one, more = make(800, 1, "one"), make(5000, 2, "heavier")
    share = (more.log_mass - 9) / 2
    heavier = more.take(np.flatnonzero(np.random.default_rng(4).random(5000) < share**3)[:800])
    sfr, logzsol = make_histories(800, 5)
    older = Histories(sfr * np.linspace(2.4, 0.1, 64), logzsol)
    other = populations.make_population("older", older, BINS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "N_BOOTSTRAP", 8)
        found = [distances.calc_distances([one, p], seed=1)[0] for p in (heavier, other)]
    return {(p["first"], p["second"]): p for p in found}


def test_other_masses_alone_are_a_distance_as_trained_and_none_at_matched_masses(pairs):
    pair = pairs["one", "heavier"]
    trained, matched = (pair[k]["sliced_wasserstein"] for k in ("as_trained", "matched_mass"))
    assert trained["value"] > trained["null"] + 5 * trained["error"]
    assert matched["value"] < matched["null"] + 4 * matched["error"]
    # histories tell their masses to the trees, unless these are matched
    seen, blind = (pair[k]["classifier_derived"] for k in ("as_trained", "matched_mass"))
    assert seen["accuracy"] > seen["null"] + 4 * seen["error"]
    assert blind["accuracy"] < 0.5 + 4 * blind["error"]


def test_other_shapes_are_seen_at_matched_masses_too(pairs):
    found = pairs["one", "older"]["matched_mass"]
    assert found["n"] > 500
    w = found["sliced_wasserstein"]
    assert w["value"] > w["null"] + 5 * w["error"]
    for name in ("classifier_x", "classifier_derived"):
        c = found[name]
        assert c["accuracy"] > c["null"] + 5 * np.hypot(c["error"], c["null_error"])


def test_priors_without_common_masses_have_no_matched_distance(monkeypatch):
    monkeypatch.setattr(distances, "_compare", lambda *args: {})
    low = make(300, 1, "low")
    high = replace(make(300, 2, "high"), log_mass=low.log_mass + 3)
    assert distances.calc_distances([low, high])[0]["matched_mass"] is None


# ---- what no prior explains ---------------------------------------------------------------------


def test_the_tail_is_a_probability_for_draws_of_the_prior_itself():
    rng = np.random.default_rng(6)
    draws, more = rng.standard_normal((600, 5)), rng.standard_normal((200, 5))
    tails = np.array([explanation.calc_tail(draws, one[None]) for one in more])
    for level in (0.1, 0.5):
        share = (tails < level).mean()
        assert share == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 200))


def test_the_tail_of_a_place_far_outside_is_one_over_the_draws():
    rng = np.random.default_rng(7)
    draws = rng.standard_normal((999, 5))
    assert explanation.calc_tail(draws, np.full((10, 5), 9.0)) == pytest.approx(1e-3)
    with_nan = np.r_[draws, np.full((5, 5), np.nan)]
    assert explanation.calc_tail(with_nan, draws[:50]) == explanation.calc_tail(draws, draws[:50])
    assert explanation.calc_tail(draws, np.full((10, 5), np.nan)) == 0


def with_scale(posterior, value, **predictive):
    parameters = dict(posterior.parameters)
    parameters["error_scale"] = Parameter(np.full(posterior.n_samples, value), "1", "")
    provenance = {**posterior.provenance, "predictive": predictive}
    return replace(posterior, parameters=parameters, provenance=provenance)


def test_each_fault_of_a_fit_speaks_against_its_prior(posterior):
    rng = np.random.default_rng(8)
    # a prior around the posterior, and one of galaxies a thousand times lighter
    sfr = np.tile(posterior.sfr, (5, 1)) * 10.0 ** (0.3 * rng.standard_normal((500, 1)))
    near = Histories(sfr, np.tile(posterior.logzsol, (5, 1)))
    assert explanation.explain(with_scale(posterior, 1.1), near).why == ()
    (why,) = explanation.explain(with_scale(posterior, 3.2), near).why
    assert "errors 3.2 times" in why
    structures = {"structures": [{"relative": 0.02}, {"relative": -0.25}], "n_structures": 2}
    (why,) = explanation.explain(with_scale(posterior, 1.1, **structures), near).why
    assert "25 %" in why
    light = near._replace(sfr=1e-3 * near.sfr)
    (why,) = explanation.explain(with_scale(posterior, 1.1), light).why
    assert "as unusual" in why


def test_a_spectrum_is_flagged_only_when_no_prior_explains_it():
    good, bad = Explanation(1.0, 0, 0.0, 0.4, ()), Explanation(5.0, 9, 0.4, 0.2, ("too bad",))
    assert explanation.format_flag("galaxy", {"a": good, "b": bad}) is None
    line = explanation.format_flag("quasar", {"a": bad, "b": bad})
    assert line == ("quasar: none of the priors explains this spectrum (a: too bad; b: too bad)")


# ---- posteriors and evidences -------------------------------------------------------------------


def test_differences_are_in_units_of_both_errors():
    def summary(median, half):
        row = {"median": median, "p16": median - half, "p84": median + half}
        return dict.fromkeys(DERIVED, row)

    (row,) = posteriors.calc_differences({"a": summary(1.0, 0.3), "b": summary(2.0, 0.4)})
    assert (row["first"], row["second"]) == ("a", "b")
    assert row["quantities"]["t50"]["difference"] == pytest.approx(1.0)
    assert row["quantities"]["t50"]["in_errors"] == pytest.approx(2.0)
    unset = dict.fromkeys(DERIVED, dict.fromkeys(("median", "p16", "p84")))
    (row,) = posteriors.calc_differences({"a": summary(1.0, 0.3), "b": unset})
    assert row["quantities"]["t50"] is None


def evidence(value, error, common=None, error_common=None):
    return SimpleNamespace(
        log_evidence=value, error=error, log_evidence_common=common, error_common=error_common,
        warnings=(),
    )  # fmt: skip


def test_bayes_factors_are_differences_with_errors_in_quadrature():
    found = posteriors.calc_bayes_factors({
        "a": evidence(-100.0, 0.3, -102.0, 0.6),
        "b": evidence(-103.0, 0.4, -101.0, 0.8),
        "c": evidence(-100.0, 0.0),
    })  # fmt: skip
    assert [(b["first"], b["second"]) for b in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found[0]["ln_b"] == pytest.approx(3.0) and found[0]["error"] == pytest.approx(0.5)
    assert found[0]["ln_b_common"] == pytest.approx(-1.0)
    assert found[0]["error_common"] == pytest.approx(1.0)
    assert found[1]["ln_b_common"] is None and found[1]["error_common"] is None


def test_the_sample_adds_up_the_spectra_that_have_both_evidences():
    one = posteriors.calc_bayes_factors({"a": evidence(3.0, 0.3, 1.0, 0.1),
                                         "b": evidence(1.0, 0.4, 1.0, 0.1)})  # fmt: skip
    two = posteriors.calc_bayes_factors({"a": evidence(0.0, 1.2), "b": evidence(5.0, 0.0)})
    spectra = [{"bayes_factors": b} for b in (one, two, [])]
    (row,) = posteriors.sum_bayes_factors(spectra, ["a", "b"])
    assert row["n"] == 2 and row["ln_b"] == pytest.approx(2.0 - 5.0)
    assert row["error"] == pytest.approx(np.sqrt(0.5**2 + 1.2**2))
    # a sum over some spectra only would pass for one over all
    assert row["ln_b_common"] is None
    assert posteriors.sum_bayes_factors([{"bayes_factors": []}], ["a", "b"]) == []


@pytest.mark.parametrize(("scales", "common"), [((1.4, 1.2), 1.2), ((0.8, 1.3), 1.0)])
def test_the_common_error_scale_is_the_smallest_but_at_least_one(scales, common):
    found = {k: Explanation(s, 0, 0.0, 1.0, ()) for k, s in zip("ab", scales)}
    assert posteriors.choose_error_scale(found) == common
