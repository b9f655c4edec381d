"""The cross table's numbers against fits of known bias."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import cross_table


def make_rows(n, bias=0.0, width=0.1, seed=0):
    """Fits whose medians scatter by 0.1 about the truth plus a bias, with errors of `width`."""
    rng = np.random.default_rng(seed)
    rows = []
    for truth, noise in zip(rng.uniform(9, 11, n), 0.1 * rng.standard_normal(n)):
        median = truth + bias + noise
        row = {"truth": truth, "median": median, "p16": median - width, "p84": median + width}
        rows.append({"quantities": dict.fromkeys(cross_table.scorecard.QUANTITIES, row)})
    return rows


def test_calibrated_fits_have_no_bias_and_hold_the_truth_in_two_of_three():
    found = cross_table.calc_statistics(make_rows(900), "t50")
    assert abs(found["bias"][0]) < 4 * found["bias"][1]
    assert found["bias"][1] == pytest.approx(0.1 / 30, rel=0.1)
    assert found["sigmas"][1] == pytest.approx(1 / 30, rel=0.1)
    assert abs(found["coverage"][0] - 0.683) < 4 * found["coverage"][1]


def test_a_bias_is_found_in_its_unit_and_in_sigmas():
    found = cross_table.calc_statistics(make_rows(900, bias=0.2), "t50")
    assert found["bias"][0] == pytest.approx(0.2, abs=4 * found["bias"][1])
    assert found["sigmas"][0] == pytest.approx(2.0, abs=4 * found["sigmas"][1])
    assert found["coverage"][0] < 0.3


def test_fits_without_a_number_do_not_count():
    rows = make_rows(50)
    undefined = {"quantities": {"t50": {"truth": 5.0, "median": None, "p16": None, "p84": None}}}
    assert cross_table.calc_statistics([*rows, undefined], "t50") == (
        cross_table.calc_statistics(rows, "t50")
    )
    assert cross_table.calc_statistics([undefined], "t50") is None


def test_a_run_fits_every_cell_and_writes_one_table_per_quantity(monkeypatch, tmp_path, capsys):
    runs = []

    def fit_mocks(run, chosen, out, *args):
        runs.append((run.mocks, run.prior, run.network, out.name, len(chosen)))
        rows = make_rows(len(chosen), bias=0.1 if run.prior == "b" else 0)
        return [{**r, "sampler": "by hand"} for r in rows[1:]] + [{"error": "failed"}]

    chosen = [SimpleNamespace(set=s) for s in (cross_table.BAND, "other") * 5]
    fake = SimpleNamespace(file=SimpleNamespace(mocks=chosen))
    monkeypatch.setattr(cross_table, "Fitter", lambda run: fake)
    monkeypatch.setattr(cross_table, "fit_mocks", fit_mocks)
    out = tmp_path / "table.md"
    args = ["--prior", "a", "--prior", "dir/b=net", "--truth", "one=bundled", "--truth", "two=x"]
    monkeypatch.setattr(sys, "argv", ["cross_table", *args, "--mocks", "4", "--out", str(out)])
    cross_table.main()
    assert [r[3] for r in runs] == ["one--a", "one--b", "two--a", "two--b"]
    assert {r[2] for r in runs} == {None, "net"} and {r[4] for r in runs} == {4}
    assert runs[0][0] == str(cross_table.mocks.BUNDLED_MOCKS) and runs[2][0] == "x"
    text = out.read_text(encoding="utf-8")
    assert "3 mocks per cell" in text and "4 fits failed" in text and "by hand" in text
    for label, _ in cross_table.scorecard.QUANTITIES.values():
        assert f"## {label}" in text
    assert text.count("| one |") == len(cross_table.scorecard.QUANTITIES)
    assert capsys.readouterr().out.strip().endswith(text.strip())
