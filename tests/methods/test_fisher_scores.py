"""FisherTune's estimates: precisions, the change between domains, shifted features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fakes import sample
from selections import (
    SeededStep,
    fishertune,
    scored,
    selected,
    weights,
)
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.contract import Grid
from rsseg_cli.methods._fisher import domain_fisher, feature_shift
from rsseg_cli.methods._fisher.posterior import GaussianPosterior, MeanSquares, Prior


# --- the posterior ---------------------------------------------------------------------------
def quadratic(posterior: GaussianPosterior, curvature: Tensor, steps: int) -> None:
    """Feed gradients of curvature (theta - y)^2 / 2, y = centre +- curvature^-1/2.

    The Fisher information and the second derivative both are the curvature.
    """
    centre, theta = [torch.full_like(curvature, 3.0)], [torch.zeros_like(curvature)]
    generator = torch.Generator().manual_seed(5)
    for step in range(steps):
        posterior.sample(theta, centre, step)
        sign = torch.randint(0, 2, curvature.shape, generator=generator) * 2.0 - 1
        posterior.update([curvature * (theta[0] - centre[0]) - sign * curvature.sqrt()], 1.0)


def test_precision_on_a_quadratic() -> None:
    curvature = torch.logspace(-4, 0, 400)
    prior = Prior(tau=(0.05,), kappa=1e-4)
    posterior = GaussianPosterior(prior, [curvature])
    quadratic(posterior, curvature, 1000)
    expected = curvature / (1e-4 * 0.05**2) + 0.05**-2
    assert torch.allclose(posterior.precision(0), expected, rtol=0.02)
    assert torch.allclose(posterior.squares[0], curvature, rtol=0.02)


def test_weights_of_passes_and_merging() -> None:
    gradients = torch.randn(5, 7)
    counted = [1.0, 0.5, 2.0, 0.0, 3.0]
    means = MeanSquares([gradients[0]])
    for gradient, weight in zip(gradients, counted, strict=True):
        means.update([gradient], weight)
    expected = np.average(gradients.double().square().numpy(), axis=0, weights=counted)
    assert np.allclose(means.squares[0].numpy(), expected, rtol=1e-5)
    # Beside a process that saw nothing.
    before = means.squares[0].clone()
    means.merge(lambda tensor: tensor / 2)
    assert torch.allclose(means.squares[0], before)


def test_fisher_information_without_the_variational_step() -> None:
    found = scored(score="fisher", posterior="none")
    assert found.domain is None
    model, method = fishertune()
    candidates = method.candidates.weights
    squares = [torch.zeros_like(weight, dtype=torch.float64) for weight in candidates]
    for number in range(4):
        torch.manual_seed(7)
        losses = model(*sample(2000 + number, 2))
        gradients = torch.autograd.grad(torch.stack(list(losses.values())).sum(), candidates)
        for square, gradient in zip(squares, gradients, strict=True):
            square += gradient.double().square() / 4
    for value, square in zip(found.values, squares, strict=True):
        assert torch.allclose(value.double(), square, rtol=1e-3, atol=1e-12)


def test_a_wide_prior_is_narrowed() -> None:
    model, method = fishertune()
    step, centre = SeededStep(model, 2, 20), weights(model)
    calm = method._loss(step, centre, None)
    assert method._loss(step, centre, Prior((1e-6,) * 12, 1.0)) == pytest.approx(calm, rel=1e-4)
    assert method._loss(step, centre, Prior((1.0,) * 12, 1.0)) != pytest.approx(calm, rel=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(centre, weights(model), strict=True))
    method._loss = (  # type: ignore[method-assign]
        lambda step, centre, prior: 2.0 + prior.tau[1] if prior else 2.0
    )
    found = method._shrink(step, centre, Prior((0.5, 1.0), 3.0))
    assert found == Prior((0.0625, 0.125), 3.0)  # 2.125 is the first below 2.2


# --- the domain's change ----------------------------------------------------------------------
@pytest.mark.parametrize("posterior", ["natural", "none"])
def test_without_a_shift_nothing_changes(posterior: str) -> None:
    found = scored(amplitude=(0.0, 0.0), posterior=posterior)
    assert found.domain is not None
    assert all(not bool(change.any()) for change in found.domain)
    shifted = scored(posterior=posterior)
    assert shifted.domain is not None
    assert all(bool(change.any()) for change in shifted.domain)


@pytest.mark.parametrize("damping", [1e-3, 1e-8])
def test_change_and_sum_written_out(damping: float) -> None:
    clean, shifted = torch.rand(50), torch.rand(50)
    clean[:5] = shifted[:3] = 0
    f, g = clean.double().numpy(), shifted.double().numpy()
    ratio = np.abs(f - g) / (np.minimum(f, g) + damping)
    domain_fisher.change(clean, shifted, damping)
    assert np.allclose(shifted.numpy(), ratio, rtol=1e-4)
    domain_fisher.combine([clean], [shifted], 0.5)
    change = 0.5 * ratio / ratio.mean()
    assert np.allclose(shifted.numpy(), change, rtol=1e-4, atol=1e-6)
    assert np.allclose(clean.numpy(), f / f.mean() + change, rtol=1e-4, atol=1e-6)


def test_the_scale_of_the_loss_does_not_matter() -> None:
    (_, once), (_, eight), (_, ten) = (selected(factor=factor) for factor in (1.0, 8.0, 10.0))
    assert torch.equal(once, eight)  # powers of two are exact
    assert int((once & ten).sum()) >= 0.999 * int(once.sum())
    # As printed in equation 5 it does: that is what the damping is for.
    (_, once), (_, eight) = (
        selected(factor=factor, damping="epsilon", kappa=1.0, score="domain")
        for factor in (1.0, 1000.0)
    )
    assert int((once & eight).sum()) < 0.99 * int(once.sum())


def test_scores_differ_as_named() -> None:
    sets = {
        score: selected(score=score)[1] for score in ("domain_fisher", "fisher", "domain", "random")
    }
    for name, one in sets.items():
        for other_name, other in sets.items():
            assert torch.equal(one, other) == (name == other_name)
    shares = {name: float(selected(score=name)[0].domain_share) for name in ("domain", "fisher")}
    assert shares["domain"] == 1
    assert math.isnan(shares["fisher"])


@pytest.mark.parametrize("settings", [{"sites": (-1, 3)}, {"posterior": "none"}])
def test_every_variant_selects(settings: dict[str, Any]) -> None:
    method, marks = selected(**settings)
    assert int(marks.sum()) == method.sizes[-1]


def test_weights_without_gradient_score_nothing() -> None:
    model, method = fishertune(sites=(-1, 0))
    model.backbone.out_indices = (0, 1)  # blocks 2 and 3 lead nowhere
    kind = type(model.head)
    model.head = kind(kind.Config(), dim=64, maps=2, classes=3)
    found = method.score(SeededStep(model, 2, 20), weights(model))
    for part, values in zip(
        method.candidates.slices, method.candidates.split(found.values), strict=True
    ):
        assert bool(torch.isfinite(values).all())
        assert bool(values.any()) == (part.block < 2)


# --- simulated domains ------------------------------------------------------------------------
GRID = Grid(3, 4, groups=2)


def spreads() -> dict[int, Tensor]:
    return {0: torch.rand(2, 2, 5) + 0.5}


def test_without_noise_every_bit_stays() -> None:
    shift = feature_shift.FeatureShift(spreads(), amplitude=(0.0, 0.0))
    shift.start(1, torch.device("cpu"))
    for dtype in (torch.float32, torch.bfloat16):
        tokens = (torch.randn(2, 3 + GRID.tokens, 5) * 10).to(dtype)
        assert torch.equal(shift(0, tokens, GRID), tokens)
    assert shift.weight() == 1


@pytest.mark.parametrize("batch", [1, 3])
def test_shift_written_out(batch: int) -> None:
    spread = spreads()
    shift = feature_shift.FeatureShift(spread, amplitude=(1.0, 1.0))
    shift.start(4, torch.device("cpu"))
    tokens = torch.randn(batch, 3 + GRID.tokens, 5, requires_grad=True)
    shifted = shift(0, tokens, GRID)
    assert torch.equal(shifted[:, :3], tokens[:, :3])
    assert shifted.requires_grad
    generator = torch.Generator().manual_seed(4)
    torch.rand((), generator=generator)
    noise = torch.randn(2, batch, 1, 2, 5, generator=generator).double()[:, :, 0]
    images = GRID.to_images(tokens[:, 3:]).detach().double()  # (B*G, D, h, w)
    mean, deviation = images.mean((2, 3)), (images.var((2, 3)) + 1e-6).sqrt()
    e_mean, e_deviation = ((noise[k] * spread[0][k]).reshape(batch * 2, 5) for k in (0, 1))
    alpha, beta = mean + e_mean, (deviation + e_deviation).maximum(0.1 * deviation)
    normal = F.instance_norm(images, eps=0) * math.sqrt(11 / 12)  # its variance is biased
    normal = normal * (images.var((2, 3)).sqrt() / deviation)[..., None, None]
    expected = normal * beta[..., None, None] + alpha[..., None, None]
    assert torch.allclose(shifted[:, 3:].double(), GRID.to_tokens(expected), atol=1e-5)
    weight = math.exp(-sum(float(n.square().mean().sqrt()) for n in noise))
    assert shift.weight() == pytest.approx(weight, rel=1e-5)


def test_spreads_between_images() -> None:
    watch = feature_shift.FeatureStatistics()
    images = torch.randn(6, 2 + GRID.tokens, 5) * torch.rand(6, 1, 5) + torch.randn(6, 1, 5)
    for pair in images.split(2):
        assert watch(7, pair, GRID) is pair
    found = watch.spreads(lambda tensor: tensor)[7]
    patches = images[:, 2:].reshape(6, 12, 2, 5).double()
    mean, deviation = patches.mean(1), (patches.var(1) + 1e-6).sqrt()
    for k, one in enumerate((mean, deviation)):
        expected = (one.var(0, correction=0) + 1e-6).sqrt()
        assert torch.allclose(found[k].double(), expected, rtol=1e-4)


def test_a_single_patch() -> None:
    mean, deviation = feature_shift.statistics(torch.ones(2, 1, 1, 5))
    assert torch.equal(mean, torch.ones(2, 1, 1, 5))
    assert torch.allclose(deviation, torch.full((2, 1, 1, 5), 1e-3))
