"""`sfhzoo compare` from names to files, with priors that need no training."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from galaxies import DATA, make_histories

from sfhzoo.cli import run as cli_run
from sfhzoo.comparison import distances, explanation, posteriors, run
from sfhzoo.comparison.populations import draw_population
from sfhzoo.comparison.posteriors import Fits
from sfhzoo.errors import DataError, Incompatible, SamplingError, UsageError
from sfhzoo.histories import HistoryScaling
from sfhzoo.posterior import Parameter
from sfhzoo.priors.network import SpectralMLP
from sfhzoo.priors.prior import Prior
from sfhzoo.priors.schedule import NoiseSchedule
from sfhzoo.priors.training import calc_principal_components
from sfhzoo.spectra.spectrum import Spectrum
from sfhzoo.zoo.artifacts import DEFAULT_GRID, DEFAULT_PRIOR, save_prior

pytest.importorskip("sklearn")
DRAWS = ("--draws", "400")
ACCURACY = {"accuracy": 0.61, "error": 0.02, "null": 0.5, "null_error": 0.01}
DISTANCE = {
    "first": "gauss-young-v1", "second": "gauss-older-v1", "matched_mass": None,
    "as_trained": {
        "n": 400, "sliced_wasserstein": {"value": 0.4, "error": 0.01, "null": 0.1},
        "classifier_x": ACCURACY, "classifier_derived": ACCURACY,
    },
}  # fmt: skip
"""By hand, of priors without common masses"""


def make_prior(name, older=False, cosmology="Planck15"):
    """An untrained network around the covariance of its galaxies: it draws a Gaussian exactly."""
    sfr, logzsol = make_histories(2000, 1)
    if older:
        sfr = sfr * np.linspace(3.0, 0.05, 64)
    scaling = HistoryScaling.fit(sfr, logzsol)
    x = torch.from_numpy(scaling.to_x(sfr, logzsol)).float()
    basis, eigenvalues = calc_principal_components(x)
    schedule = NoiseSchedule()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SpectralMLP((2, 64), 8, 1, schedule, basis, eigenvalues).eval()
    config = {
        "name": name, "kind": "prior", "architecture": "spectral-mlp",
        "hyperparameters": {"width": 8, "blocks": 1}, "sde": schedule.to_dict(),
        "scaling": scaling.to_dict(), "cosmology": cosmology, "n_bins": 64,
    }  # fmt: skip
    return Prior(network, config)


@pytest.fixture(scope="module")
def priors(tmp_path_factory):
    directory = tmp_path_factory.mktemp("priors")
    return [
        str(save_prior(make_prior(f"gauss-{k}-v1", older=k == "older"), directory / f"gauss-{k}"))
        for k in ("young", "older")
    ]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(distances, "N_BOOTSTRAP", 4)


@pytest.fixture(scope="module")
def written(priors, tmp_path_factory):
    """Exit code and output directory of one comparison without spectra."""
    out = tmp_path_factory.mktemp("out") / "c"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "N_BOOTSTRAP", 4)
        return cli_run(["compare", *priors, *DRAWS, "--out", str(out), "--quiet"]), out


# ---- populations only ---------------------------------------------------------------------------


def test_a_comparison_writes_everything_and_says_what_made_it(written, priors):
    code, out = written
    assert code == 0
    names = {"comparison.json", "comparison.md", "histories.png", "relations.png"}
    assert {p.name for p in out.iterdir()} == names
    result = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert result["schema"] == 1 and result["seed"] == 0 and result["draws"] == 400
    assert [p["label"] for p in result["priors"]] == ["gauss-young-v1", "gauss-older-v1"]
    assert all(len(p["sha256"]) == 64 for p in result["priors"])
    assert {"sfhzoo", "torch", "numpy", "scikit-learn"} <= set(result["versions"])
    assert result["spectra"] == [] and result["grid"] is None
    table = result["populations"]["gauss-older-v1"]
    assert sum(row["n"] for row in table) > 300
    report = (out / "comparison.md").read_text(encoding="utf-8")
    for heading in ("Distances", "t50", "log SFR", "Quenched fraction", "log Z/Z_sun"):
        assert heading in report
    rows = [line for line in report.splitlines() if line.startswith("| ")]
    assert all(r.count("|") > 2 for r in rows) and len(rows) > 40


def test_the_older_prior_is_the_older_one(written):
    result = json.loads((written[1] / "comparison.json").read_text(encoding="utf-8"))
    young, older = (result["populations"][f"gauss-{k}-v1"] for k in ("young", "older"))
    pairs = [(a["t50"], b["t50"]) for a, b in zip(young, older) if a["t50"] and b["t50"]]
    gaps = [(a["median"] - b["median"]) / np.hypot(a["error"], b["error"]) for a, b in pairs]
    assert len(gaps) >= 2 and min(gaps) > 0
    # all bins together
    assert sum(gaps) / np.sqrt(len(gaps)) > 5
    found = result["distances"][0]["as_trained"]["sliced_wasserstein"]
    assert found["value"] > found["null"] + 5 * found["error"]


def test_the_same_seed_gives_the_same_numbers(written, priors):
    again = run.compare(priors, draws=400).result
    before = json.loads((written[1] / "comparison.json").read_text(encoding="utf-8"))
    for key in ("distances", "populations", "priors"):
        assert json.loads(json.dumps(again[key])) == before[key]


def test_an_earlier_comparison_is_replaced_only_when_told_and_other_files_never(
    written, priors, tmp_path, capsys, monkeypatch
):
    drawn = []
    monkeypatch.setattr(run, "draw_population", lambda *args: drawn.append(args))
    assert cli_run(["compare", *priors, "--out", str(written[1])]) == 2
    assert "exists" in capsys.readouterr().err
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    assert cli_run(["compare", *priors, "--out", str(tmp_path), "--overwrite"]) == 2
    assert "not an earlier output" in capsys.readouterr().err
    assert drawn == []


# ---- what is refused, before any work -----------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["{0}"], 2, "at least two priors, got 1"),
        (["{0}", "{0}"], 2, "expected different priors"),
        (["{0}", "no-such-v1"], 4, "no-such-v1"),
        (["{0}", "{1}", "--network", "nonsense"], 2, "PRIOR=DIR"),
        (["{0}", "{1}", "--network", "other-v1=/nowhere"], 2, "other-v1"),
        (["{0}", "{1}", "--network", "{0}=/nowhere"], 4, "nowhere"),
        (["{0}", "{1}", "--mass-prior", "as-trained"], 2, "all priors can share"),
        (["{0}", "{1}", "--mass-prior", "heavy"], 2, "heavy"),
        (["{0}", "{1}", "--redshift", "0.1"], 2, "1 for 0"),
        (["{0}", "{1}", "--spectrum", "/nowhere.fits"], 3, "nowhere.fits"),
        (["{0}", "{1}", "--spectrum", "/nowhere.fits", "--lsf", "wide"], 2, "--lsf"),
        (["{0}", "{1}", "--spectrum", "/nowhere.fits", "--flux-unit", "apples"], 2, "--flux-unit"),
    ],
)
def test_wrong_usage_is_one_line_and_an_exit_code(priors, tmp_path, capsys, args, code, says):
    args = [a.format(*priors) for a in args]
    assert cli_run(["compare", *args, "--out", str(tmp_path / "c")]) == code
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err
    assert not (tmp_path / "c").exists()


def test_priors_of_another_universe_are_refused(priors, tmp_path):
    other = save_prior(make_prior("other-v1", cosmology="WMAP9"), tmp_path / "other")
    with pytest.raises(Incompatible, match=r"Planck15.*WMAP9"):
        run.load_members([priors[0], other], {})


def test_priors_of_one_name_are_told_apart_by_their_directories(priors, tmp_path):
    same = save_prior(make_prior("gauss-young-v1", older=True), tmp_path / "same")
    members = run.load_members([priors[0], same], {})
    assert [m.label for m in members] == [priors[0], str(same)]


# ---- with spectra -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(priors):
    """Populations by label, drawn once for all tests with spectra."""
    members = run.load_members(priors, {})
    return {m.label: draw_population(m.prior, m.label, 400) for m in members}


@pytest.fixture
def fits(monkeypatch, posterior, drawn):
    """Fits by hand: the second prior finds less mass, and is worse by 3 in ln Z each time."""
    calls = []

    def infer(spectrum, prior, grid, **options):
        calls.append((spectrum.name, prior.name, options))
        older = "older" in prior.name
        made = {**posterior.provenance, "object": spectrum.name, "seed": options["seed"]}
        return replace(posterior, sfr=posterior.sfr * (0.5 if older else 1.0), provenance=made)

    def estimate_evidence(spectrum, prior, grid, **options):
        calls.append((spectrum.name, prior.name, options))
        value = -5.0 if "older" in prior.name else -2.0
        return SimpleNamespace(log_evidence=value, error=0.3, log_evidence_common=value / 2,
                               error_common=0.4, facts={}, warnings=("by hand",))  # fmt: skip

    monkeypatch.setattr(posteriors, "infer", infer)
    monkeypatch.setattr(posteriors, "estimate_evidence", estimate_evidence)
    grid = SimpleNamespace(name="by-hand-v1", sha256="ab" * 32)
    monkeypatch.setattr(run, "load_grid", lambda name: grid)
    monkeypatch.setattr(run, "draw_population", lambda prior, label, *args: drawn[label])
    monkeypatch.setattr(run, "calc_distances", lambda *args: [DISTANCE])
    return calls


@pytest.fixture(scope="module")
def spectrum():
    return Spectrum.read(DATA / "spec-NGC3522.fits")


def test_spectra_get_posteriors_bayes_factors_and_figures(fits, priors, spectrum, tmp_path):
    two = [spectrum, replace(spectrum, name="a $ b/c")]
    found = run.compare(priors, two, draws=400, samples=50, seed=3)
    result = found.result
    first = result["spectra"][0]
    (row,) = first["differences"]
    assert row["quantities"]["log_mass_formed"]["difference"] == pytest.approx(np.log10(0.5))
    assert row["quantities"]["t50"]["in_errors"] == pytest.approx(0)
    (b,) = first["bayes_factors"]
    assert b["ln_b"] == pytest.approx(3.0) and b["ln_b_common"] == pytest.approx(1.5)
    (total,) = result["bayes_factors"]
    assert (total["n"], total["ln_b"]) == (2, pytest.approx(6.0))
    assert total["error"] == pytest.approx(0.3 * 2) and total["ln_b_common"] == pytest.approx(3)
    # one likelihood for both: the same factor on the errors, the common mass prior
    evidences = [o for _, _, o in fits if "error_scale" in o]
    assert len(evidences) == 4 and {o["mass_prior"] for o in evidences} == {"flat"}
    scale = float(
        np.median(found.fits[0].posteriors["gauss-young-v1"].parameters["error_scale"].values)
    )
    assert {o["error_scale"] for o in evidences} == {max(1.0, scale)}
    out = found.write(tmp_path / "c")
    assert (out / "spectrum-a-b-c.png").stat().st_size > 20_000
    report = (out / "comparison.md").read_text(encoding="utf-8")
    assert "0.400 ± 0.010" in report and "too few in common" in report
    assert "## a $ b/c" in report and "gauss-young-v1 / gauss-older-v1, 2 spectra" in report
    assert found.write(tmp_path / "c", overwrite=True) == out
    # both posteriors say the same
    assert found.warnings().count(f"{spectrum.name}: the mock is not a galaxy") == 1


@pytest.mark.parametrize("bad", [("young", "older"), ("older",)])
def test_a_spectrum_is_pointed_out_only_when_every_prior_fails(
    fits, priors, tmp_path, capsys, monkeypatch, bad
):
    infer = posteriors.infer

    def needs_large_errors(spectrum, prior, *args, **options):
        found = infer(spectrum, prior, *args, **options)
        scale = 4.0 if any(name in prior.name for name in bad) else 1.1
        values = Parameter(np.full(found.n_samples, scale), "1", "")
        return replace(found, parameters={**found.parameters, "error_scale": values})

    monkeypatch.setattr(posteriors, "infer", needs_large_errors)
    monkeypatch.setattr(explanation, "calc_tail", lambda *args: 0.5)
    args = ["--spectrum", str(DATA / "spec-NGC3522.fits"), "--no-evidence", *DRAWS]
    assert cli_run(["compare", *priors, *args, "--out", str(tmp_path / "c"), "--json"]) == 0
    out, err = capsys.readouterr()
    content = json.loads(out)["spectra"][0]
    flagged = [line for line in err.splitlines() if "none of the priors explains" in line]
    assert len(flagged) == (1 if len(bad) == 2 else 0)
    assert content["explained"] == (not flagged)
    explains = {k: p["explanation"]["explains"] for k, p in content["priors"].items()}
    assert explains == {f"gauss-{k}-v1": k not in bad for k in ("young", "older")}
    assert content["bayes_factors"] == [] and not [o for *_, o in fits if "error_scale" in o]


def test_an_evidence_that_fails_leaves_the_posteriors(fits, priors, spectrum, monkeypatch):
    def fail(*args, **options):
        raise SamplingError("it did not converge")

    monkeypatch.setattr(posteriors, "estimate_evidence", fail)
    found = run.compare(priors, [spectrum], draws=400)
    assert found.result["spectra"][0]["evidences"] == {}
    assert any("no evidence of gauss-older-v1: it did not" in w for w in found.warnings())


def test_a_spectrum_without_redshift_is_refused_before_the_draws(priors, spectrum):
    with pytest.raises(DataError, match=r"no redshift.*--redshift"):
        run.compare(priors, [replace(spectrum, redshift=None)])


def test_a_mass_prior_that_is_none_cannot_be_common(priors):
    with pytest.raises(UsageError, match="all priors can share"):
        run.compare(priors, mass_prior="as-trained")


# ---- several spectra, and how they are fitted ---------------------------------------------------


def test_a_spectrum_that_cannot_be_fitted_does_not_cost_the_others(priors, monkeypatch, tmp_path):
    good = Spectrum.read(DATA / "spec-NGC3522.fits")
    bad = replace(good, name="bad")
    calls = []

    def fit(spectrum, members, *rest, **options):
        calls.append(options)
        if spectrum.name == "bad":
            raise SamplingError("the samples did not reach the data")
        return Fits(spectrum, {}, {}, 1.0, {})

    monkeypatch.setattr(run, "fit_spectrum", fit)
    monkeypatch.setattr(Fits, "as_dict", lambda self: {"bayes_factors": []})
    said = []
    found = run.compare(priors, [bad, good], draws=400, say=said.append, a_v=0.2)
    assert found.result["failed"] == [
        {"object": "bad", "error": "the samples did not reach the data"}
    ]
    assert [f.spectrum.name for f in found.fits] == [good.name]
    assert "bad is left out" in said[-1] and found.result["options"]["a_v"] == 0.2
    assert all(c["a_v"] == 0.2 for c in calls)
    with pytest.raises(SamplingError, match="bad: the samples did not reach"):
        run.compare(priors, [bad], draws=400)


def test_a_network_of_another_prior_is_found_before_anything_is_drawn(priors, monkeypatch):
    of_tng = DATA / f"{DEFAULT_PRIOR}--{DEFAULT_GRID}-posterior-v1"
    monkeypatch.setattr(run, "draw_population", lambda *a: pytest.fail("drew"))
    with pytest.raises(Incompatible, match="was trained on the histories"):
        run.compare(priors, networks={priors[0]: of_tng})
