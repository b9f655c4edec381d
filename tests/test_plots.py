"""The figures draw what the posterior holds, in every state an astronomer's data can be in."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from sfhzoo.plots import plot_histories, plot_spectrum


def texts(figure):
    return " ".join(t.get_text() for ax in figure.axes for t in ax.texts)


def legend_of(figure):
    return [t.get_text() for t in figure.axes[0].get_legend().get_texts()]


def test_the_histories_name_object_redshift_and_prior(posterior):
    title = plot_histories(posterior).get_suptitle()
    assert "J082926.47+224436.2" in title
    assert "0.0873" in title
    assert "diffstarpop-tng-v1" in title


def test_the_sfr_axis_is_logarithmic_only_for_a_large_range(posterior):
    assert plot_histories(posterior).axes[0].get_yscale() == "log"
    flat = replace(posterior, sfr=np.full_like(posterior.sfr, 2.0))
    assert plot_histories(flat).axes[0].get_yscale() == "linear"


def test_the_median_line_is_the_median_of_the_samples(posterior):
    axis = plot_histories(posterior).axes[0]
    thick = [p for p in axis.patches if p.get_linewidth() == 2]
    assert len(thick) == 1
    values, edges, _ = thick[0].get_data()
    np.testing.assert_allclose(edges, posterior.bins.edges)
    shown = np.median(posterior.sfr, axis=0) > axis.get_ylim()[0]
    np.testing.assert_allclose(values[shown], np.median(posterior.sfr, axis=0)[shown])


def test_the_time_after_the_observation_is_marked_as_a_prediction(posterior):
    assert "prediction" in texts(plot_histories(posterior))
    assert "prediction" not in texts(plot_histories(replace(posterior, redshift=0.004)))


def test_t50_and_t90_stand_on_the_cumulative_mass(posterior):
    summary = posterior.summary()["quantities"]
    shown = texts(plot_histories(posterior))
    for percent in (50, 90):
        assert f"t$_{{{percent}}}$ = {summary[f't{percent}']['median']:.1f} Gyr" in shown


def test_the_spectrum_names_each_reason_for_a_mask_that_occurs(posterior):
    never = np.zeros_like(posterior.observed.mask)
    reasons = {**posterior.observed.mask_reasons, "never": never}
    seen = replace(posterior.observed, mask_reasons=reasons)
    legend = legend_of(plot_spectrum(replace(posterior, observed=seen)))
    assert [name for name in legend if name.startswith("masked")] == [
        "masked: emission lines", "masked: sky", "masked: bad pixels",
    ]  # fmt: skip


def test_a_pixel_left_out_without_a_reason_is_still_shown_as_masked(posterior):
    mask = posterior.observed.mask.copy()
    mask[400:405] = False
    seen = replace(posterior.observed, mask=mask)
    assert "masked: other" in legend_of(plot_spectrum(replace(posterior, observed=seen)))


def test_residuals_are_in_units_of_the_files_errors(posterior):
    seen = posterior.observed
    axis = plot_spectrum(posterior).axes[1]
    dots = next(line for line in axis.lines if len(line.get_xdata()) == seen.used.sum())
    residual = (seen.flux - np.median(posterior.model_flux, axis=0)) * np.sqrt(seen.ivar)
    np.testing.assert_allclose(dots.get_ydata(), residual[seen.used])


def test_one_wild_pixel_does_not_squeeze_the_spectrum(posterior):
    flux = posterior.observed.flux.copy()
    flux[np.flatnonzero(posterior.observed.used)[10]] = 1e-12
    wild = replace(posterior, observed=replace(posterior.observed, flux=flux))
    assert plot_spectrum(wild).axes[0].get_ylim()[1] < 10


@pytest.mark.parametrize("state", ["no stars", "nothing used", "model ends early", "dollar"])
def test_figures_are_drawn_in_unusual_states(posterior, state, tmp_path):
    seen, model = posterior.observed, posterior.model_flux.copy()
    if state == "no stars":
        posterior = replace(posterior, sfr=np.zeros_like(posterior.sfr))
    elif state == "nothing used":
        posterior = replace(posterior, observed=replace(seen, mask=np.zeros_like(seen.mask)))
    elif state == "model ends early":
        model[:, -50:] = np.nan
        mask = seen.mask & (np.arange(seen.mask.size) < seen.mask.size - 50)
        posterior = replace(posterior, model_flux=model, observed=replace(seen, mask=mask))
    else:
        posterior = replace(posterior, provenance={"object": "a $ b $ c_d"})
    for number, figure in enumerate(posterior.plot()):
        figure.savefig(tmp_path / f"{number}.png", dpi=40)
        assert (tmp_path / f"{number}.png").stat().st_size > 5000


def test_plotting_leaves_pyplot_alone(posterior):
    before = "matplotlib.pyplot" in sys.modules
    plot_histories(posterior)
    plot_spectrum(posterior)
    assert ("matplotlib.pyplot" in sys.modules) == before
