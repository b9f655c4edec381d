"""Mock observations, the running of fits with resume, and the command."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from galaxies import load_grid, make_histories
from scipy import stats
from test_coverage import make_rows

from sfhzoo import inference, validation
from sfhzoo.cli import run as cli_run
from sfhzoo.cli import validate as cli_validate
from sfhzoo.diagnostics import figures, mocks, scorecard, scorereport
from sfhzoo.diagnostics.mocks import BANDS, SETS
from sfhzoo.errors import ArtifactError, DataError, SamplingError
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.calibration import calc_calibration_rows
from sfhzoo.likelihood.nuisance import ERROR_SCALE_SPREAD
from sfhzoo.likelihood.options import Options
from sfhzoo.likelihood.problem import CALIBRATION_RMS
from sfhzoo.posterior import Observed, Parameter, Posterior
from sfhzoo.preparation import prepare_spectrum
from sfhzoo.simulations import trainingset
from sfhzoo.simulations.trainingset import TrainingSet
from sfhzoo.timebins import TimeBins

BINS = TimeBins()


@cache
def load_mocks():
    return mocks.load()


def of_bands():
    return [m for m in load_mocks().mocks if m.set in BANDS]


# ---- the bundled mocks --------------------------------------------------------------------------


def test_the_bundled_mocks_are_as_many_as_promised_and_small():
    file = load_mocks()
    counts = {s.name: sum(m.set == s.name for m in file.mocks) for s in SETS}
    assert all(counts[b] >= 200 for b in BANDS)
    assert [counts[f"redshift {z}"] for z in (0.004, 0.67, 1.04)] == [50] * 3
    assert mocks.BUNDLED_MOCKS.stat().st_size < 1e6
    assert len(file.attributes["training_set"]["sha256"]) == 64


def test_no_two_mocks_share_a_history_or_noise():
    all_mocks = load_mocks().mocks
    assert len({m.sfr.tobytes() for m in all_mocks}) == len(all_mocks)
    assert len({m.seed for m in all_mocks}) == len(all_mocks)


def test_redshifts_and_snr_lie_in_their_sets_ranges():
    for of_set in SETS:
        here = [m for m in load_mocks().mocks if m.set == of_set.name]
        for values, (low, high) in (
            ([m.redshift for m in here], of_set.redshift),
            ([m.snr for m in here], of_set.snr),
        ):
            assert low * (1 - 1e-9) <= min(values) and max(values) <= high * (1 + 1e-9)
            if low < high:
                spread = np.log(values) if high > 1 else values
                ends = np.log([low, high]) if high > 1 else [low, high]
                assert stats.kstest(spread, "uniform", (ends[0], np.ptp(ends))).pvalue > 1e-3


def test_every_nuisance_has_the_fits_prior():
    here = of_bands()
    columns = {
        **{f"u{k}": [m.u[k] for m in here] for k in range(3)},
        **{f"c{k}": [m.calibration[k] / CALIBRATION_RMS for m in here] for k in range(8)},
        "f": [np.log(m.error_scale) / ERROR_SCALE_SPREAD for m in here],
    }
    p = {name: stats.kstest(values, "norm").pvalue for name, values in columns.items()}
    assert min(p.values()) > 1e-3, p
    # Options hold what the fit's calibration prior is by default
    assert Options().calibration_rms == CALIBRATION_RMS


def test_the_fixed_set_is_fixed():
    here = [m for m in load_mocks().mocks if m.set == SETS[-1].name]
    physical = nuisance.to_physical(torch.from_numpy(np.stack([m.u for m in here])))
    assert torch.allclose(physical.a_v, torch.tensor(0.2).double())
    assert torch.allclose(physical.sigma_v, torch.tensor(150.0).double())
    assert all(m.error_scale == 1 and not m.calibration.any() and m.snr == 50 for m in here)


def make_training_set():
    sfr, logzsol = (a.astype(np.float32) for a in make_histories(1000, 4))
    attributes = {"sha256": "ab" * 32, "name": "by-hand-v1", "cosmology": "Planck15"}
    return TrainingSet(sfr, logzsol, 900, attributes, {})


def test_the_file_is_made_again_bit_for_bit_from_test_galaxies_only(tmp_path):
    data = make_training_set()
    a, b = (mocks.make(data, tmp_path / n) for n in ("a.safetensors", "b.safetensors"))
    assert a.read_bytes() == b.read_bytes()
    other = mocks.make(data, tmp_path / "c.safetensors", seeds=(2,))
    assert a.read_bytes() != other.read_bytes()
    test = {row.tobytes() for row in data.histories("test")[0]}
    assert all(m.sfr.astype(np.float32).tobytes() in test for m in mocks.load(a).mocks)


def test_further_seeds_add_other_galaxies_to_the_bands(tmp_path):
    data = make_training_set()
    one = mocks.load(mocks.make(data, tmp_path / "one.safetensors", seeds=(1,))).mocks
    both = mocks.load(mocks.make(data, tmp_path / "both.safetensors", seeds=(1, 2))).mocks
    second = mocks.load(mocks.make(data, tmp_path / "two.safetensors", seeds=(2,))).mocks
    assert [m.seed for m in both[: len(one)]] == [m.seed for m in one]
    added = both[len(one) :]
    # 900 test galaxies, of which the first seed has taken 840
    assert 0 < len(added) <= 60 and {m.set for m in added} <= set(BANDS)
    ranges = {s.name: s.snr for s in SETS}
    assert all(ranges[m.set][0] <= m.snr <= ranges[m.set][1] for m in added)
    assert len({m.sfr.tobytes() for m in both}) == len(both)
    # a fit of theirs is that of the file of the second seed
    for mock in added:
        alone = second[mock.draw]
        assert (alone.seed, alone.draw, alone.set) == (mock.seed, mock.draw, mock.set)


def test_too_few_test_galaxies_for_all_mocks_are_refused(tmp_path):
    data = dataclasses.replace(make_training_set(), n_test=100)
    with pytest.raises(DataError, match=r"at least 840 test galaxies.*got 100 in by-hand-v1"):
        mocks.make(data, tmp_path / "few.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_mock_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match="expected a file of mocks"):
        mocks.load(path)


def test_a_selection_takes_the_first_mocks_of_every_set_in_proportion():
    file = load_mocks()
    quick = file.select(60, bands_only=True)
    assert sorted({m.set for m in quick}) == sorted(BANDS) and len(quick) == 60
    some = file.select(60)
    counts = {s.name: sum(m.set == s.name for m in some) for s in SETS}
    assert list(counts.values()) == [20, 20, 20, 5, 5, 5, 6]
    assert len(file.select()) == len(file.mocks)
    assert {m.number for m in file.select(30)} <= {m.number for m in some}


# ---- the spectra --------------------------------------------------------------------------------


def truth_of(mock):
    """Noiseless flux [wave] of a mock by the forward model alone, and the file's error."""
    from sfhzoo.forward.model import ForwardModel

    wave = mocks.WAVE_OBS
    lsf = mocks.calc_lsf_sigma(wave)
    model = ForwardModel(load_grid(), wave, mock.redshift, lsf_sigma=lsf, bins=BINS)
    arrays = (torch.from_numpy(a) for a in (mock.sfr, mock.logzsol))
    return model(*arrays, *nuisance.to_physical(torch.from_numpy(mock.u))).numpy()


def test_a_mock_is_the_model_times_its_calibration_plus_noise_of_its_scale():
    for number in (0, 301, 660, 700):
        mock = load_mocks().mocks[number]
        spectrum = mocks.make_spectrum(mock, load_grid(), BINS)
        flux, error = truth_of(mock), spectrum.ivar**-0.5
        assert np.median(flux / error) == pytest.approx(mock.snr, rel=1e-6)
        used = spectrum.wave_obs[mocks.calc_used(spectrum, mock.redshift, load_grid())]
        order = int(np.clip(round((used[-1] - used[0]) / 700), 1, 8))
        rows = calc_calibration_rows(spectrum.wave_obs, (used[0], used[-1]), order)
        factor = 1 + mock.calibration[:order] @ rows
        residual = (spectrum.flux - flux * factor) / error / mock.error_scale
        assert abs(residual.std() - 1) < 0.04 and abs(residual.mean()) < 0.06


def test_errors_are_worse_at_both_ends():
    shape = mocks.calc_error_shape(mocks.WAVE_OBS)
    middle = shape[len(shape) // 2]
    assert shape[0] > 2 * middle and shape[-1] > 1.5 * middle


def test_a_mock_comes_out_the_same_every_time_and_alone():
    mock = load_mocks().mocks[5]
    a, b = (mocks.make_spectrum(mock, load_grid(), BINS) for _ in range(2))
    assert np.array_equal(a.flux, b.flux)
    assert a.redshift == mock.redshift and a.lsf_sigma is not None and not a.warnings


@pytest.mark.parametrize("number", [0, 640, 690, 740])
def test_the_fit_uses_the_pixels_and_the_polynomial_that_the_mock_was_made_with(number):
    mock = load_mocks().mocks[number]
    spectrum = mocks.make_spectrum(mock, load_grid(), BINS)
    prior = SimpleNamespace(bins=BINS, scaling=object())  # the scaling is not looked at
    setup = prepare_spectrum(spectrum, prior, load_grid(), Options(), False)
    used = mocks.calc_used(spectrum, mock.redshift, load_grid())
    assert np.array_equal(setup.observed.mask, used)
    span = np.ptp(spectrum.wave_obs[used])
    assert setup.problem.calibration_order == int(np.clip(round(span / 700), 1, 8))


def test_truths_follow_the_posteriors_formulas_and_are_finite():
    mock = load_mocks().mocks[0]
    truth = mocks.calc_truth(mock, load_grid(), BINS)
    now = BINS.age_at(mock.redshift)
    mass = mock.sfr @ BINS.overlap(now) * 1e9
    assert truth["log_mass_formed"] == pytest.approx(np.log10(mass))
    assert 0.4 < 10 ** (truth["log_mass_surviving"] - truth["log_mass_formed"]) < 1
    assert truth["error_scale"] == mock.error_scale
    for other in load_mocks().mocks[::40]:
        values = mocks.calc_truth(other, load_grid(), BINS)
        assert all(np.isfinite(list(values.values())))


# ---- running ------------------------------------------------------------------------------------


def fake_infer(spectrum, prior, grid, *, samples, sampler, network, seed):
    """A calibrated posterior with known widths: truth + one common offset + scatter.

    It knows the truth by the mock's name, and moves the whole history up or down.
    """
    mock = load_mocks().mocks[int(spectrum.name[-4:])]
    rng = np.random.default_rng(seed)
    scatter = 0.03 * (rng.standard_normal() + rng.standard_normal(samples))
    sfr = mock.sfr * 10.0 ** scatter[:, None]
    u = torch.from_numpy(
        mock.u + 0.2 * (rng.standard_normal(3) + rng.standard_normal((samples, 3)))
    )
    physical = nuisance.to_physical(u)
    names = ("a_v", "sigma_v", "velocity_offset")
    parameters = {n: Parameter(v.numpy(), "", "") for n, v in zip(names, physical)}
    ones = np.ones(samples)
    return Posterior(
        sfr=sfr,
        logzsol=np.tile(mock.logzsol, (samples, 1)),
        parameters={**parameters, "error_scale": Parameter(ones, "1", "")},
        mass_surviving=0.6 * sfr.sum(1),
        bins=BINS,
        redshift=mock.redshift,
        model_flux=np.tile(spectrum.flux, (samples, 1)),
        observed=Observed(spectrum.wave_obs, spectrum.flux, spectrum.ivar, spectrum.mask),
        sample_stats={},
        provenance={"sampler": "by hand", "facts": {"ess": 77.0}, "warnings": ["it is 3.5 off"]},
    )


@pytest.fixture
def fake(monkeypatch):
    calls = []

    def infer(spectrum, *args, **kwargs):
        calls.append(int(spectrum.name[-4:]))
        return fake_infer(spectrum, *args, **kwargs)

    monkeypatch.setattr(inference, "infer", infer)
    monkeypatch.setattr(validation, "load_grid", lambda name: load_grid())
    return calls


RUN = validation.Run(samples=40)


def test_a_line_holds_everything_about_a_fit(fake):
    line = validation.Fitter(RUN).fit(3)
    json.dumps(line, allow_nan=False)
    assert line["mock"] == 3 and line["set"] == load_mocks().mocks[3].set
    assert set(scorecard.QUANTITIES) < set(line["quantities"])
    mass = line["quantities"]["log_mass_formed"]
    assert set(mass) == set(scorecard.STATISTICS)
    assert mass["p2_5"] < mass["p16"] < mass["median"] < mass["p84"] < mass["p97_5"]
    assert abs(mass["median"] - mass["truth"]) < 0.2
    assert line["ess"] == 77 and line["warnings"] == ["it is 3.5 off"]
    assert line["chi2_per_pixel"] == 0 and line["wall_s"] > 0


def test_mocks_fit_in_any_order_give_the_same_line(fake):
    fitter = validation.Fitter(RUN)
    first = fitter.fit(4)
    fitter.fit(1)
    again = fitter.fit(4)
    del first["wall_s"], again["wall_s"]
    assert first == again


def test_a_stopped_run_goes_on_where_it_stopped(fake, tmp_path):
    selection = load_mocks().select(9, bands_only=True)
    validation.fit_mocks(RUN, selection[:4], tmp_path)
    path = tmp_path / validation.FITS
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + whole.splitlines()[0][:200], encoding="utf-8")  # cut short by a kill
    rows = validation.fit_mocks(RUN, selection, tmp_path)
    assert sorted(fake) == sorted(m.number for m in selection)  # none twice
    assert [r["mock"] for r in rows] == [m.number for m in selection]
    assert validation.fit_mocks(RUN, selection, tmp_path) == rows
    assert len(fake) == 9


def test_another_run_in_the_same_place_shares_nothing(fake, tmp_path):
    selection = load_mocks().select(6, bands_only=True)[:2]
    validation.fit_mocks(RUN, selection, tmp_path)
    other = validation.Run(samples=40, seed=1)
    rows = validation.fit_mocks(other, selection, tmp_path)
    assert len(fake) == 4
    keys = {validation.Fitter(r).key for r in (RUN, other, validation.Run(samples=41))}
    assert len(keys) == 3 and {r["run"] for r in rows} == {validation.Fitter(other).key}


def test_a_failed_fit_is_recorded_reported_and_tried_again(fake, tmp_path, monkeypatch):
    good = inference.infer

    def fails(spectrum, *args, **kwargs):
        if spectrum.name == "mock-0000":
            raise SamplingError("the chains did not mix")
        return good(spectrum, *args, **kwargs)

    monkeypatch.setattr(inference, "infer", fails)
    monkeypatch.setattr(validation, "plot_all", lambda results: {})
    metrics = validation.validate(RUN, tmp_path, n_mocks=6, bands_only=True)
    assert metrics["n_failed"] == 1 and metrics["n_mocks"] == 6
    assert metrics["failures"] == {"0": "SamplingError: the chains did not mix"}
    assert "the chains did not mix" in (tmp_path / "report.md").read_text(encoding="utf-8")
    monkeypatch.setattr(inference, "infer", good)
    assert validation.validate(RUN, tmp_path, n_mocks=6, bands_only=True)["n_failed"] == 0
    assert len(fake) == 6


def test_a_run_writes_metrics_report_and_figures(fake, tmp_path):
    metrics = validation.validate(RUN, tmp_path, n_mocks=30)
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    names = {p.name for p in tmp_path.iterdir()}
    stems = ("coverage", "ranks", "tarp", "recovery", "conditional")
    assert names == {"metrics.json", "report.md", validation.FITS, *(f"{s}.png" for s in stems)}
    assert set(metrics["sets"]) == {s.name for s in SETS}
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Only 10 mocks per band" in report and "redshift 0.67 (no thresholds)" in report
    assert metrics["warnings"] == {"it is # off": metrics["n_mocks"]}
    assert metrics["samplers_used"] == ["by hand"]


def test_mocks_of_another_population_are_pointed_out(fake, monkeypatch):
    fitter = validation.Fitter(RUN)
    assert fitter.notes == []
    fitter.prior.training_set = "ff" * 32
    assert "not of the population" in fitter.notes[0]


@pytest.fixture
def own_mocks(tmp_path, capsys):
    """(training set, its mocks) by the command; histories unlike those of the bundled mocks."""
    data, path = make_training_set(), tmp_path / "set.zarr"
    arrays = {"sfr": data.sfr, "logzsol": data.logzsol}
    sha256 = trainingset.content_hash([data.sfr, data.logzsol])
    trainingset._write(path, arrays, {**data.attributes, "sha256": sha256, "n_test": 900})
    out = tmp_path / "own.safetensors"
    assert cli_run(["simulation", "mocks", str(path), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    return trainingset.load(path), out


def test_mocks_of_ones_own_population_take_the_place_of_the_bundled_ones(
    fake, own_mocks, monkeypatch, tmp_path, capsys
):
    data, path = own_mocks
    monkeypatch.setitem(fake_infer.__globals__, "load_mocks", lambda: mocks.load(path))
    run = validation.Run(samples=40, mocks=str(path))
    fitter = validation.Fitter(run)
    fitter.prior.training_set = data.sha256
    assert fitter.notes == [] and fitter.key != validation.Fitter(RUN).key
    line, truth = fitter.fit(2), mocks.load(path).mocks[2]
    now = BINS.age_at(truth.redshift)
    mass = np.log10(truth.sfr @ BINS.overlap(now) * 1e9)
    assert line["quantities"]["log_mass_formed"]["truth"] == pytest.approx(mass)
    args = ["validate", "diffstarpop-tng-v1", "--mocks", str(path), "--n-mocks", "6"]
    cli_run([*args, "--samples", "20", "--workers", "1", "--out", str(tmp_path / "v"), "--json"])
    out, err = capsys.readouterr()
    metrics = json.loads(out)
    assert metrics["run"]["mocks"] == mocks.load(path).sha256
    assert "the mocks are galaxies of by-hand-v1" in err


def test_a_file_of_mocks_is_never_overwritten(own_mocks, tmp_path, capsys):
    before = own_mocks[1].read_bytes()
    args = ["simulation", "mocks", str(tmp_path / "set.zarr"), "--out", str(own_mocks[1])]
    assert cli_run(args) == 2
    assert "remove it or choose another --out" in capsys.readouterr().err
    assert own_mocks[1].read_bytes() == before


def test_the_table_of_a_verdict_has_one_row_per_check():
    metrics = scorecard.calc_metrics(make_rows(20, width=0.5))
    text = scorereport.format_verdict(metrics)
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(metrics["checks"])
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)
    assert "**missed**" in text


def test_figures_are_drawn_with_failed_fits_too():
    results = scorecard.Results.from_rows(make_rows(12, 30, failed=(0, 1, 5)))
    for figure in figures.plot_all(results).values():
        figure.canvas.draw()


# ---- the command --------------------------------------------------------------------------------


def test_the_command_exits_with_1_when_a_threshold_is_missed(fake, tmp_path, capsys):
    # the fake's metallicities are the truth itself, and its log mass is right
    args = ["validate", "diffstarpop-tng-v1", *"--n-mocks 6 --samples 20 --workers 1".split()]
    code = cli_run([*args, "--out", str(tmp_path / "v"), "--json", "--quiet"])
    out, err = capsys.readouterr()
    metrics = json.loads(out)
    assert code == (0 if metrics["passed"] else 1)
    assert err == ""


def test_passing_and_missing_have_different_exit_codes(monkeypatch, tmp_path, capsys):
    def calibrated(passed):
        rows = make_rows(20, width=1.0 if passed else 0.4)
        metrics = scorecard.calc_metrics(rows)
        assert metrics["passed"] is passed
        head = {"run": {"prior": {"name": "p"}, "grid": {"name": "g"}, "samples": 1, "seed": 0},
                "samplers_used": [], "notes": [], "failures": {}, "warnings": {}, "workers": 1,
                "machine": "m", "date": "d"}  # fmt: skip
        return {**metrics, **head}

    for passed, code in ((True, 0), (False, 1)):
        monkeypatch.setattr(
            validation, "validate", lambda *a, passed=passed, **k: calibrated(passed)
        )
        assert cli_run(["validate", "x", "--out", str(tmp_path)]) == code
        assert ("**missed**" in capsys.readouterr().out) is not passed


def test_an_unknown_prior_is_named_and_exits_with_4(tmp_path, capsys):
    assert cli_run(["validate", "diffstarpop-v1", "--out", str(tmp_path / "v")]) == 4
    assert "did you mean" in capsys.readouterr().err


def test_the_default_number_of_workers_is_what_the_process_may_use():
    assert 1 <= cli_validate.default_workers() <= (os.cpu_count() or 1)


@pytest.mark.slow
def test_worker_processes_give_the_numbers_of_one_process(fake, tmp_path):
    """In a program of its own: spawned workers do not see this one's fake."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_validate as t\n"
        "from sfhzoo import inference, validation\n"
        "inference.infer = t.fake_infer\n"
        "if __name__ == '__main__':\n"
        "    from pathlib import Path\n"
        "    chosen = t.load_mocks().select(6, bands_only=True)\n"
        "    rows = validation.fit_mocks(t.RUN, chosen, Path(sys.argv[1]), workers=2)\n"
        "    assert [r['mock'] for r in rows] == [m.number for m in chosen]\n",
        encoding="utf-8",
    )
    subprocess.run([sys.executable, program, tmp_path / "two"], check=True, timeout=300)
    chosen = load_mocks().select(6, bands_only=True)
    one = validation.fit_mocks(RUN, chosen, tmp_path / "one")
    two = validation.fit_mocks(RUN, chosen, tmp_path / "two")
    assert len(fake) == 6  # the second took the lines of the workers
    assert [r["quantities"] for r in one] == [r["quantities"] for r in two]
