"""What tells the views of one spectrum apart is the posterior network's error (`update`)."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from sfhzoo.samplers.update import Blunt, centre_views, draw_together

D, VIEWS, SIZE = 5, 400, 5
FREE = torch.ones(D, dtype=torch.bool)


class Curved(NamedTuple):
    """Three sharp data of five coordinates, not linear in them."""

    a: torch.Tensor

    def predict(self, state):
        return (state + 0.02 * state**2) @ self.a.T

    def linearise(self, state, residual):
        slope = 1 + 0.04 * state
        inner = slope[:, :, None] * (self.a.T @ self.a) * slope[:, None, :]
        return slope * (residual @ self.a), inner

    def move(self, state, step):
        return state + step


@pytest.fixture(scope="module")
def model():
    g = torch.Generator().manual_seed(0)
    return Curved(torch.randn(3, D, generator=g, dtype=torch.float64) * 30)


def draw(generator, spread_of_views):
    """Draws [view * size, D] along the line the data leave free, and the views' numbers."""
    normal = lambda *n: torch.randn(n, generator=generator, dtype=torch.float64)  # noqa: E731
    own = normal(VIEWS, 1, 1) * spread_of_views
    return (own + normal(VIEWS, SIZE, 1)).flatten(0, 1)


def on_the_data(model, along):
    """States with predictions as of 0, at distances [sample, 1] along the free directions."""
    _, _, axes = torch.linalg.svd(model.a)
    # the model is linear in w = m + 0.02 m²
    w = along @ (axes[3:4] + 0.5 * axes[4:5])
    return ((1 + 0.08 * w).sqrt() - 1) / 0.04


def centre(model, state, good=None):
    view = torch.arange(VIEWS).repeat_interleave(SIZE)
    good = torch.ones(len(state), dtype=torch.bool) if good is None else good
    return centre_views(model, state, view, good, torch.eye(D).double(), FREE).state


def test_draws_of_the_posterior_keep_their_mean_spread_and_fit(model):
    along = draw(torch.Generator().manual_seed(1), 0.0)
    state = on_the_data(model, along)
    after = centre(model, state)
    n = len(state)
    for j in range(D):
        error = float(state[:, j].std()) * n**-0.5
        assert abs(float(after[:, j].mean() - state[:, j].mean())) < 4 * error
    ratio = float(after.var(0).sum() / state.var(0).sum())
    assert ratio == pytest.approx(1.0, abs=5 * (2 / n) ** 0.5)
    # a shift of the states alone would leave the data by the curvature
    assert float((model.predict(after) - model.predict(state)).square().sum(1).median()) < 0.05


def test_differences_of_the_views_are_taken_out(model):
    g = torch.Generator().manual_seed(2)
    state = on_the_data(model, draw(g, 0.7))
    after = centre(model, state).view(VIEWS, SIZE, D)
    means = after.mean(1)
    assert float(state.view(VIEWS, SIZE, D).mean(1).var(0).sum()) > 0.5
    assert float(means.var(0).sum()) < 0.01
    # 1 without the views' 0.49
    expected = on_the_data(model, draw(g, 0.0)).var(0).sum()
    assert float(after.flatten(0, 1).var(0).sum() / expected) == pytest.approx(1.0, abs=0.1)


def test_a_draw_alone_in_its_view_and_one_that_does_not_count_stay(model):
    state = on_the_data(model, draw(torch.Generator().manual_seed(3), 0.7))
    good = torch.ones(len(state), dtype=torch.bool)
    good[1:SIZE] = False
    good[2 * SIZE] = False
    after = centre(model, state, good)
    unmoved = (after - state).abs().amax(1) < 1e-3
    assert unmoved[:SIZE].all() and unmoved[2 * SIZE]
    assert not unmoved[SIZE : 2 * SIZE].any()


def together(state, own_error, information, free=FREE):
    none = torch.zeros(0)
    blunt = Blunt(none, 1.0, 0.0, none, state, SIZE, own_error)
    return draw_together(blunt, free, torch.diag(POPULATION), information).state


POPULATION = torch.tensor([1.0, 4.0, 0.25, 9.0, 1.0]).double()
"""Precisions."""


def test_only_what_the_view_tells_is_drawn_together():
    g = torch.Generator().manual_seed(4)
    state = torch.randn(VIEWS * SIZE, D, generator=g, dtype=torch.float64)
    # known to 1e-3 of the population's spread, to half of its variance, and not at all; the last
    # three are nuisance values, of which three quarters of the share are taken
    information = torch.diag(POPULATION * torch.tensor([1e6, 1.0, 1e6, 1.0, 0.0]).double())
    after = together(state, 0.4, information)
    deviations = lambda s: s.view(VIEWS, SIZE, D) - s.view(VIEWS, SIZE, D).mean(1, keepdim=True)  # noqa: E731
    ratio = deviations(after).square().mean((0, 1)) / deviations(state).square().mean((0, 1))
    expected = torch.tensor([0.6, 1 - 0.4 * 15 / 16, 0.7, 1 - 0.3 * 15 / 16, 1.0]).double()
    torch.testing.assert_close(ratio, expected, rtol=1e-5, atol=0)
    means = lambda s: s.view(VIEWS, SIZE, D).mean(1)  # noqa: E731
    torch.testing.assert_close(means(after), means(state))


def test_a_network_without_error_and_fixed_coordinates_are_left_alone():
    g = torch.Generator().manual_seed(5)
    state = torch.randn(VIEWS * SIZE, D, generator=g, dtype=torch.float64)
    root = torch.randn(D, D, generator=g, dtype=torch.float64)
    information = root @ root.T
    torch.testing.assert_close(together(state, 0.0, information), state)
    free = torch.tensor([True, True, True, True, False])
    after = together(state, 0.4, information, free)
    assert torch.equal(after[:, 4], state[:, 4])
    assert not torch.allclose(after[:, :4], state[:, :4])
