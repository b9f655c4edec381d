"""Training: it learns, it resumes where it was killed, and it refuses what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sfhzoo.errors import ArtifactError, DataError, Incompatible, SamplingError
from sfhzoo.priors import training
from sfhzoo.priors.network import build_network
from sfhzoo.priors.recipe import TrainingOptions
from sfhzoo.priors.schedule import NoiseSchedule
from sfhzoo.priors.training import calc_principal_components, learning_rate_at
from sfhzoo.simulations import trainingset
from sfhzoo.zoo.artifacts import load_prior, save_prior, verify

N_GALAXIES, N_TEST = 1500, 100


@pytest.fixture
def workspace(tmp_path):
    """A training set of two-sided exponentials with scatter, beside its recipe."""
    rng = np.random.default_rng(4)
    time = np.arange(64) / 64
    peak, width = rng.uniform(0.1, 0.9, (N_GALAXIES, 1)), rng.uniform(0.05, 0.4, (N_GALAXIES, 1))
    log_sfr = rng.normal(0, 1, (N_GALAXIES, 1)) - np.abs(time - peak) / width
    sfr = (10 ** (log_sfr + 0.1 * rng.standard_normal((N_GALAXIES, 64)))).astype(np.float32)
    logzsol = (-2 + 2 * time + 0.2 * rng.standard_normal((N_GALAXIES, 1))).astype(np.float32)
    attributes = {
        "name": "tiny-v1",
        "recipe": json.dumps({"engine": "by hand"}),
        "cosmology": "Planck15",
        "n_test": N_TEST,
        "sha256": trainingset.content_hash([sfr, logzsol]),
    }
    data = {"sfr": sfr, "logzsol": logzsol, "log_halo_mass": np.zeros(N_GALAXIES, np.float32)}
    trainingset._write(tmp_path / "tiny.zarr", data, attributes)
    return tmp_path


def write_recipe(directory: Path, name: str = "recipe.toml", **changes: Any) -> Path:
    options = {
        "training_set": "tiny.zarr",
        "network": {"width": 32, "blocks": 1},
        "batch": 64,
        "steps": 30,
        "warmup": 5,
        "checkpoint_every": 15,
        "seed": 1,
        **changes,
    }

    def toml(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
        return json.dumps(value)

    lines = ['name = "tiny-v1"', "[training]", *(f"{k} = {toml(v)}" for k, v in options.items())]
    (directory / name).write_text("\n".join(lines), encoding="utf-8")
    return directory / name


class Killed(Exception):
    """Stands for the signal that ends a training."""


def train_and_kill(recipe: Path, out: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    save = training.TrainingState.save

    def save_and_die(self: training.TrainingState, *args: Any) -> None:
        save(self, *args)
        if self.step == after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingState, "save", save_and_die)
        with pytest.raises(Killed):
            training.train(recipe, out)


# ---- training -----------------------------------------------------------------------------------


def test_a_short_training_beats_the_gaussian_it_starts_from(workspace):
    recipe = write_recipe(workspace, steps=300, network={"width": 128, "blocks": 2})
    out = training.train(recipe, workspace / "prior")
    losses = load_file(out / "checkpoint.safetensors")["losses"]
    # the exact Gaussian denoiser has loss 1 on average, by the weight of the residual
    assert losses.shape == (3,)
    assert losses[-1] < 0.9
    assert losses[-1] < losses[0]


def test_a_trained_prior_is_a_verified_artifact_that_says_how_it_was_made(workspace):
    out = training.train(write_recipe(workspace), workspace / "prior")
    verify(out)
    prior = load_prior(out)
    assert prior.name == "tiny-v1" and prior.shape == (2, 64)
    assert prior.config["training"]["steps"] == 30
    data = trainingset.load(workspace / "tiny.zarr")
    assert prior.config["training_set"]["sha256"] == data.sha256
    assert prior.config["training_set"]["n_train"] == N_GALAXIES - N_TEST
    assert (out / "training.png").stat().st_size > 1000


def test_the_test_split_is_never_trained_on(workspace):
    options = TrainingOptions.from_recipe(
        trainingset.read_recipe(write_recipe(workspace)), "recipe"
    )
    x, scaling, data = training.load_training_x(options, workspace)
    assert x.shape == (N_GALAXIES - N_TEST, 2, 64)
    first_test = torch.from_numpy(scaling.to_x(*(v[0] for v in data.histories("test")))).float()
    assert (x - first_test).flatten(1).norm(dim=1).min() > 1e-3


def test_a_killed_and_resumed_training_ends_bit_for_bit_like_an_uninterrupted_one(
    workspace, monkeypatch
):
    recipe = write_recipe(workspace)
    training.train(recipe, workspace / "whole")
    train_and_kill(recipe, workspace / "resumed", 15, monkeypatch)
    assert not (workspace / "resumed" / "config.json").exists()
    training.train(recipe, workspace / "resumed")
    for name in ("model.safetensors", "checkpoint.safetensors"):
        whole, resumed = (load_file(workspace / d / name) for d in ("whole", "resumed"))
        assert whole.keys() == resumed.keys()
        # the log averages the steps since its last entry, and a kill loses the first of them
        for key in whole.keys() - {"losses"}:
            assert torch.equal(whole[key], resumed[key]), key


def test_without_resume_a_training_starts_afresh(workspace, monkeypatch):
    recipe = write_recipe(workspace)
    training.train(recipe, workspace / "whole")
    other = write_recipe(workspace, "other.toml", seed=2)
    train_and_kill(other, workspace / "restarted", 15, monkeypatch)
    training.train(recipe, workspace / "restarted", resume=False)
    whole, restarted = (
        load_file(workspace / d / "model.safetensors") for d in ("whole", "restarted")
    )
    assert all(torch.equal(whole[k], restarted[k]) for k in whole)


def test_another_seed_gives_other_weights(workspace):
    a, b = (
        training.train(write_recipe(workspace, seed=seed), workspace / f"seed{seed}", steps=3)
        for seed in (1, 2)
    )
    a, b = (load_file(d / "model.safetensors") for d in (a, b))
    assert not torch.equal(a["inp.weight"], b["inp.weight"])
    # the principal components come from the data alone
    assert torch.equal(a["basis"], b["basis"])


def test_training_leaves_the_global_random_state_alone(workspace):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    training.train(write_recipe(workspace), workspace / "prior", steps=3)
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- refusals -----------------------------------------------------------------------------------


def test_a_checkpoint_of_another_recipe_is_not_continued(workspace, monkeypatch):
    train_and_kill(write_recipe(workspace), workspace / "prior", 15, monkeypatch)
    other = write_recipe(workspace, "other.toml", learning_rate=5e-4)
    with pytest.raises(DataError, match="another recipe"):
        training.train(other, workspace / "prior")


def test_a_checkpoint_of_another_training_set_is_not_continued(workspace, monkeypatch):
    recipe = write_recipe(workspace)
    train_and_kill(recipe, workspace / "prior", 15, monkeypatch)
    data = trainingset.load(workspace / "tiny.zarr")
    sfr = 2 * data.sfr
    changed = {**data.attributes, "sha256": trainingset.content_hash([sfr, data.logzsol])}
    arrays = {"sfr": sfr, "logzsol": data.logzsol, **data.galaxy}
    (workspace / "tiny.zarr").rename(workspace / "old.zarr")
    trainingset._write(workspace / "tiny.zarr", arrays, changed)
    with pytest.raises(DataError, match="another training_set"):
        training.train(recipe, workspace / "prior")


def test_an_unknown_key_in_a_recipe_is_named_with_the_known_ones(workspace):
    recipe = write_recipe(workspace, learning_rat=1e-3)
    with pytest.raises(DataError, match=r"learning_rat.*known are.*learning_rate"):
        training.train(recipe, workspace / "prior")
    assert not (workspace / "prior").exists()


def test_a_recipe_without_a_training_set_is_refused(workspace):
    with pytest.raises(DataError, match="training_set"):
        TrainingOptions.from_recipe({"training": {"steps": 3}}, "recipe")


@pytest.mark.parametrize("floor", [-1.5, -12.0])
def test_the_floor_of_the_metallicity_is_the_recipes(workspace, floor):
    recipe = write_recipe(workspace, logzsol_floor=floor)
    prior = load_prior(training.train(recipe, workspace / "floor"))
    assert prior.scaling.logzsol_floor == floor
    low = prior.scaling.from_x(torch.full((1, 2, 64), -1e3))
    assert float(low.logzsol.max()) == floor


def test_a_missing_training_set_is_refused_by_its_path(workspace):
    recipe = write_recipe(workspace, training_set="gone.zarr")
    with pytest.raises(ArtifactError, match=r"gone\.zarr"):
        training.train(recipe, workspace / "prior")


def test_a_training_that_diverges_says_at_which_step(workspace):
    options = TrainingOptions(training_set="", steps=10, warmup=1)
    state = training.make_state(torch.nn.Linear(2, 2), options)

    def loss(state: training.TrainingState) -> torch.Tensor:
        return state.network(torch.full((1, 2), torch.inf)).sum()

    with pytest.raises(SamplingError, match="step 10"):
        training.run_steps(state, loss, options, lambda: None)


# ---- parts --------------------------------------------------------------------------------------


def test_the_principal_components_rebuild_the_second_moment():
    x = torch.randn((500, 2, 8), generator=torch.Generator().manual_seed(1))
    x[:, 1] += 0.8 * x[:, 0]
    q, lam = calc_principal_components(x)
    flat = x.flatten(1)
    torch.testing.assert_close(
        q @ torch.diag(lam) @ q.T, flat.T @ flat / 500, rtol=1e-4, atol=1e-5
    )
    assert torch.all(lam.diff() <= 0)
    torch.testing.assert_close(q.T @ q, torch.eye(16), rtol=1e-5, atol=1e-5)


def test_the_learning_rate_warms_up_and_falls_as_half_a_cosine():
    options = TrainingOptions(
        training_set="", steps=1100, warmup=100, learning_rate=1e-3, final_learning_rate=1e-5
    )
    assert learning_rate_at(0, options) == pytest.approx(1e-5)
    assert learning_rate_at(49, options) == pytest.approx(5e-4)
    assert learning_rate_at(100, options) == pytest.approx(1e-3)
    assert learning_rate_at(600, options) == pytest.approx((1e-3 + 1e-5) / 2)
    assert learning_rate_at(1100, options) == pytest.approx(1e-5)


def test_the_average_of_constant_weights_is_the_constant_and_it_forgets_the_start():
    network = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(5.0)
    ema = training.Ema(network, 0.9)
    with torch.no_grad():
        network.weight.fill_(1.0)
    expected = 5.0
    for step in range(40):
        decay = min(0.9, (step + 1) / (step + 10))
        expected = decay * expected + (1 - decay) * 1.0
        ema.update(network, step)
    assert ema.shadow["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert ema.shadow["weight"].item() == pytest.approx(1.0, abs=0.01)
    assert network.weight.item() == 1.0


# ---- beginning with another prior ---------------------------------------------------------------


def test_a_training_begins_with_the_weights_of_another_prior_and_says_so(workspace):
    first = load_prior(training.train(write_recipe(workspace), workspace / "first"))
    # at a rate of nothing the weights stay those it began with; the variances are of the set
    recipe = write_recipe(
        workspace, "second.toml", start=str(workspace / "first"), steps=2,
        learning_rate=1e-12, final_learning_rate=1e-12,
    )  # fmt: skip
    second = load_prior(training.train(recipe, workspace / "second"))
    assert second.config["training"]["start"] == {"name": "tiny-v1", "sha256": first.sha256}
    before, after = first.network.state_dict(), second.network.state_dict()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-6)
    fresh = load_prior(training.train(write_recipe(workspace, steps=2), workspace / "fresh"))
    weight = "inp.weight"
    assert float((fresh.network.state_dict()[weight] - before[weight]).abs().max()) > 1e-3
    assert fresh.config["training"]["start"] is None


def test_a_prior_that_began_with_another_starts_its_draws_with_its_own_covariance(workspace):
    first = training.train(write_recipe(workspace, steps=2), workspace / "first")
    # massive galaxies are rich in metals, unlike those of the first
    data = trainingset.load(workspace / "tiny.zarr")
    logzsol = data.logzsol + np.log10(data.sfr.sum(axis=1))[:, None]
    arrays = {"sfr": data.sfr, "logzsol": logzsol, "log_halo_mass": np.zeros(N_GALAXIES)}
    sha256 = trainingset.content_hash([data.sfr, logzsol])
    trainingset._write(workspace / "other.zarr", arrays, {**data.attributes, "sha256": sha256})
    recipe = write_recipe(
        workspace, "other.toml", training_set="other.zarr", start=str(first), steps=2
    )
    prior = load_prior(training.train(recipe, workspace / "second"))
    assert prior.config["hyperparameters"]["borrowed_basis"]

    histories = prior.scaling.to_x(data.sfr[:-N_TEST], logzsol[:-N_TEST]).reshape(-1, 128)
    noise = torch.randn((20_000, 2, 64), generator=torch.Generator().manual_seed(0))
    drawn = prior.network.draw_gaussian(noise, 1.0).flatten(1).numpy()
    expected = np.cov(histories.T) + np.eye(128)
    assert abs(expected[:64, 64:].mean()) > 0.1
    # errors of the elements, from those of a Wishart matrix
    error = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / len(noise))
    assert np.abs((np.cov(drawn.T) - expected) / error).max() < 5.5


def test_a_covariance_that_is_none_is_refused(workspace):
    first = training.train(write_recipe(workspace, steps=2), workspace / "first")
    recipe = write_recipe(workspace, "second.toml", start=str(first), steps=2)
    second = load_prior(training.train(recipe, workspace / "second"))
    second.network.covariance.fill_(-1e9)
    save_prior(second, workspace / "wrong")
    with pytest.raises(Incompatible, match="missing or wrong"):
        load_prior(workspace / "wrong")


def test_a_prior_of_another_shape_is_no_beginning(workspace):
    training.train(write_recipe(workspace), workspace / "first")
    recipe = write_recipe(
        workspace, "wide.toml", start=str(workspace / "first"), network={"width": 48, "blocks": 1}
    )
    with pytest.raises(Incompatible, match="cannot start from tiny-v1"):
        training.train(recipe, workspace / "wide")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch": 0}, "batch is 0, expected 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"ema_decay": 2.0}, "ema_decay is 2.0"),
        ({"schedule": {"sigma_min": 30.0}}, "0 < sigma_min < sigma_max"),
        ({"schedule": {"sigma": 1.0}}, "unexpected keyword argument 'sigma'"),
        ({"parametrisation": "cubic"}, "parametrisation log or linear: 'cubic'"),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_refused_before_anything_is_read(changes, says):
    recipe = {"name": "toy-v1", "training": {"training_set": "nowhere.zarr", **changes}}
    with pytest.raises(DataError, match=says):
        TrainingOptions.from_recipe(recipe, "toy.toml")


@pytest.mark.parametrize("name", ["TNG 50", "../a-v1", "tng50", None])
def test_a_prior_is_not_trained_under_a_name_that_the_zoo_would_not_take(name):
    with pytest.raises(DataError, match="expected a name of the form"):
        TrainingOptions.from_recipe({"name": name, "training": {"training_set": "a"}}, "toy.toml")


def test_a_misspelt_size_of_the_network_is_refused():
    with pytest.raises(Incompatible, match=r"unknown \['nff'\]"):
        build_network("ncsnpp", {"nff": 8}, NoiseSchedule())
