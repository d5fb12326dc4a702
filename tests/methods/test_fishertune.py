"""FisherTune: what is estimated, what is chosen, what moves, what the file holds."""

from __future__ import annotations

import json
import math
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import build, sample
from pydantic import ValidationError
from selections import SETTINGS, SeededStep, chosen, made, train, weights
from test_contract import BANDS
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.contract import Backbone, Grid
from rsseg_cli.errors import RssegError
from rsseg_cli.find import find
from rsseg_cli.methods import _domain, _dsu, _posterior, _ranking
from rsseg_cli.methods._candidates import Candidates
from rsseg_cli.methods._posterior import Natural, Prior, Reparameterised
from rsseg_cli.methods.fishertune import FisherTune, schedule
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import optimizer
from rsseg_cli.training.checkpoint import save_model

QUICK: dict[str, Any] = {"statistics": 3, "gauge": 3, "estimation": 4, "warmup": 2}


def fishertune(seed: int = 0, **settings: Any) -> tuple[Segmenter, FisherTune]:
    model, method = made("fishertune", seed=seed, **(QUICK | settings))
    assert isinstance(method, FisherTune)
    return model, method


def scored(**settings: Any) -> _domain.Scores:
    """Score the candidates of a fresh model."""
    factor = settings.pop("factor", 1.0)
    model, method = fishertune(**settings)
    return method.score(SeededStep(model, 2, 20, factor), weights(model))


def selected(**settings: Any) -> tuple[FisherTune, Tensor]:
    """Select; give the set as one vector of marks."""
    factor = settings.pop("factor", 1.0)
    model, method = fishertune(**settings)
    method.before_step(SeededStep(model, 2, 20, factor))
    return method, torch.cat([mask.flatten() for mask in chosen(method)])


# --- the posterior ---------------------------------------------------------------------------
def quadratic(posterior: Natural | Reparameterised, curvature: Tensor, steps: int) -> None:
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
    posterior = Natural(prior, [curvature])
    quadratic(posterior, curvature, 1000)
    expected = curvature / (1e-4 * 0.05**2) + 0.05**-2
    assert torch.allclose(posterior.precision(0), expected, rtol=0.02)
    assert torch.allclose(posterior.fisher()[0], curvature, rtol=0.02)


def test_reparameterised_precision_ranks_alike() -> None:
    curvature = torch.logspace(-3, 0, 400)
    posterior = Reparameterised(Prior(tau=(1.0,), kappa=1e-2), [curvature], lr=0.05)
    quadratic(posterior, curvature, 1000)
    fisher = posterior.fisher()[0]
    assert float(fisher.min()) >= 0
    top = fisher.argsort(descending=True)[:40]
    assert float((top >= 360).float().mean()) > 0.6
    assert float(fisher[-40:].mean() / curvature[-40:].mean()) == pytest.approx(1, abs=0.4)
    ranks = torch.stack([fisher.argsort().argsort().float(), torch.arange(400.0)])
    assert float(ranks.corrcoef()[0, 1]) > 0.9


def test_weights_of_passes_and_merging() -> None:
    gradients = torch.randn(5, 7)
    counted = [1.0, 0.5, 2.0, 0.0, 3.0]
    means = _posterior.MeanSquares([gradients[0]])
    for gradient, weight in zip(gradients, counted, strict=True):
        means.update([gradient], weight)
    expected = np.average(gradients.double().square().numpy(), axis=0, weights=counted)
    assert np.allclose(means.fisher()[0].numpy(), expected, rtol=1e-5)
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
    found = method._calm(step, centre, Prior((0.5, 1.0), 3.0))
    assert found == Prior((0.0625, 0.125), 3.0)  # 2.125 is the first below 2.2


# --- the domain's change ----------------------------------------------------------------------
@pytest.mark.parametrize("posterior", ["natural", "none", "reparameterised"])
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
    _domain.change(clean, shifted, damping)
    assert np.allclose(shifted.numpy(), ratio, rtol=1e-4)
    for how, expected in {
        "sum": (f, 0.5 * ratio),
        "means": (f / f.mean(), 0.5 * ratio / ratio.mean()),
        "ranks": (
            (f[:, None] > f).mean(1), 0.5 * (ratio[:, None] > ratio).mean(1)
        ),
    }.items():  # fmt: skip
        values, domain = clean.clone(), shifted.clone()
        _domain.combine(how, [values], [domain], 0.5)  # type: ignore[arg-type]
        near = 0.021 if how == "ranks" else 1e-6  # two that share a bin
        assert np.allclose(domain.numpy(), expected[1], rtol=1e-4, atol=near), how
        assert np.allclose(values.numpy(), sum(expected), rtol=1e-4, atol=near), how


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


@pytest.mark.parametrize(
    "settings",
    [{"combine": "ranks"}, {"combine": "sum"}, {"shift_weight": "signed"}, {"sites": (-1, 3)},
     {"shift_weight": "none"}, {"tau_per": "backbone"}, {"posterior": "reparameterised"}],
)  # fmt: skip
def test_every_variant_selects(settings: dict[str, Any]) -> None:
    method, marks = selected(**settings)
    assert int(marks.sum()) == method.sizes[-1]


def test_weights_without_gradient_score_nothing() -> None:
    model, method = fishertune(sites=(-1, 0))
    model.backbone.taps = (0, 1)  # blocks 2 and 3 lead nowhere
    kind = type(model.head)
    model.head = kind(kind.Config(), dim=64, maps=2, classes=3)
    found = method.score(SeededStep(model, 2, 20), weights(model))
    for part, values in zip(
        method.candidates.parts, method.candidates.split(found.values), strict=True
    ):
        assert bool(torch.isfinite(values).all())
        assert bool(values.any()) == (part.block < 2)


# --- simulated domains ------------------------------------------------------------------------
GRID = Grid(3, 4, groups=2)


def spreads() -> dict[int, Tensor]:
    return {0: torch.rand(2, 2, 5) + 0.5}


def test_without_noise_every_bit_stays() -> None:
    shift = _dsu.Shift(spreads(), amplitude=(0.0, 0.0), weight="magnitude")
    shift.start(1, torch.device("cpu"))
    for dtype in (torch.float32, torch.bfloat16):
        tokens = (torch.randn(2, 3 + GRID.tokens, 5) * 10).to(dtype)
        assert torch.equal(shift(0, tokens, GRID), tokens)
    assert shift.weight() == 1


@pytest.mark.parametrize("batch", [1, 3])
def test_shift_written_out(batch: int) -> None:
    spread = spreads()
    shift = _dsu.Shift(spread, amplitude=(1.0, 1.0), weight="magnitude")
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


def test_signed_weight_as_printed() -> None:
    shift = _dsu.Shift(spreads(), amplitude=(0.5, 2.0), weight="signed")
    tokens, found = torch.randn(2, GRID.tokens, 5), []
    for seed in range(300):
        shift.start(seed, torch.device("cpu"))
        shift(0, tokens, GRID)
        found.append(shift.weight())
    assert np.mean(found) > 1  # exp of a symmetric sum: not below 1, as large shifts should be


def test_spreads_between_images() -> None:
    watch = _dsu.Watch()
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
    mean, deviation = _dsu.statistics(torch.ones(2, 1, 1, 5))
    assert torch.equal(mean, torch.ones(2, 1, 1, 5))
    assert torch.allclose(deviation, torch.full((2, 1, 1, 5), 1e-3))


# --- ranking ---------------------------------------------------------------------------------
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("cuts", [[1], [5, 100, 101, 900], [1000], list(range(1, 256))])
def test_levels_are_those_of_a_full_sort(
    ties: bool, cuts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ranking, "CHUNK", 64)
    generator = torch.Generator().manual_seed(len(cuts))
    scores = [torch.randn(size, generator=generator).mul(9).exp() for size in (700, 1, 399)]
    if ties:
        scores = [one.log().round().clamp(min=0) for one in scores]
        scores[0][3] = -0.0
    levels = [torch.zeros(len(one), dtype=torch.uint8) for one in scores]
    _ranking.levels(scores, cuts, levels)
    flat = torch.cat(scores)
    order = flat.argsort(descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(0, order, torch.arange(1, len(flat) + 1))
    expected = torch.searchsorted(torch.tensor(cuts), ranks)
    expected[expected == len(cuts)] = 255
    assert torch.equal(torch.cat(levels).long(), expected)
    assert _ranking.value_at(scores, 17) == flat[order[16]]


def test_median_above_zero() -> None:
    scores = torch.cat([torch.zeros(100), torch.arange(1.0, 52.0)])
    assert _ranking.median_above_zero([scores[:120], scores[120:]]) == 26
    assert _ranking.median_above_zero([torch.zeros(9)]) == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are Linux's to tell")
def test_ranking_takes_a_byte_per_element_and_little_else() -> None:
    def memory(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))

    generator = torch.Generator().manual_seed(0)
    # A quarter of a ViT-L's: one tensor, many times. The rest of the memory does not grow.
    scores = [torch.randn(2**22, generator=generator).mul_(3).exp_()] * 16
    count, most = 16 * 2**22, 3_687_000
    cuts = [round(most * (20 + 0.8 * level) / 100) for level in range(101)]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    levels = [torch.empty(2**22, dtype=torch.uint8) for _ in scores]
    _ranking.levels(scores, cuts, levels)
    besides = memory("VmHWM") - before - count
    assert besides < 96 * 2**20
    assert 1 + besides / 276_824_064 < 1.5
    assert sum(int((one <= 50).sum()) for one in levels) == cuts[50]
    assert sum(int((one != 255).sum()) for one in levels) == cuts[-1]


# --- the schedule ----------------------------------------------------------------------------
def test_schedules() -> None:
    grow = schedule("grow", 0.01, 0.05, 1.0)
    assert grow[0] == 0.01
    assert grow[-1] == pytest.approx(0.05, abs=1e-15)
    assert [round(100 * grow[part], 1) for part in (25, 50, 74)] == [2.4, 3.5, 4.3]
    fast = [0.01 + 0.04 * (1 - math.exp(-5 * t / 99)) / (1 - math.exp(-5)) for t in range(100)]
    assert schedule("grow", 0.01, 0.05, 5.0) == pytest.approx(fast)
    paper = schedule("paper", 0.01, 0.05, 1.0)
    assert paper[0] == pytest.approx(0.05)
    assert round(100 * paper[-1], 2) == 2.47
    assert set(schedule("constant", 0.01, 0.05, 1.0)) == {0.05}


@pytest.mark.parametrize("kind", ["grow", "constant", "paper"])
def test_as_many_are_active_as_the_schedule_says(kind: str) -> None:
    model, method = fishertune(schedule=kind, score="random")
    total, sets = 202, []
    shares = schedule(kind, 0.01, 0.05, 1.0)  # type: ignore[arg-type]
    for index in range(total):
        method.before_step(SeededStep(model, index, total))
        masks = [mask.flatten() for mask in method._masks]
        if index < 2:
            assert not masks
            continue
        active = torch.cat(masks)
        assert int(active.sum()) == round(shares[(index - 2) // 2] * method.candidates.total)
        sets.append(active)
    for earlier, later in pairwise(sets):
        smaller, larger = (later, earlier) if kind == "paper" else (earlier, later)
        assert not bool((smaller & ~larger).any())


def vit_large(name: str) -> Backbone:
    kind = find("backbones", name.split("_")[0], Backbone)
    config: Any = kind.Config.model_validate({"name": name, "pretrained": False})
    with torch.device("meta"):
        backbone: Backbone = kind(config, BANDS.model_copy(update={"names": BANDS.names}))  # type: ignore[call-arg,arg-type]
    return backbone


def test_counts_at_vit_large() -> None:
    backbone = vit_large("dinov2_large")
    network: Any = backbone.model
    # As published: RGB, and positions for 512 pixels.
    network.pos_embed = torch.nn.Parameter(torch.empty(1, 1 + 32 * 32, 1024, device="meta"))
    network.patch_embed.proj = torch.nn.Conv2d(3, 1024, 16, 16, device="meta")
    with torch.device("meta"):
        method = FisherTune(FisherTune.Config(), backbone)
    assert method.candidates.total == 304_198_656
    assert method.candidates.size == 276_824_064
    assert method.sizes[0] == 3_041_987
    assert method.sizes[-1] == 15_209_933
    assert len(method.candidates) == 24 * 5
    assert len(list(method.tuned(backbone))) == 24 * 3


def test_gated_mlps_and_separate_queries() -> None:
    backbone = vit_large("eva02_large")
    candidates = Candidates(backbone, ("q", "k", "v", "fc1", "fc2"))
    assert [part.role for part in candidates.parts[:6]] == ["q", "k", "v", "fc1", "fc1", "fc2"]
    assert len(candidates.weights) == len(candidates) == 24 * 6
    assert len(set(candidates.names)) == 24 * 6


# --- what moves ------------------------------------------------------------------------------
def test_warm_up_and_estimation_move_nothing() -> None:
    model, method = fishertune()
    everything = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    adam = train(model, range(2), total=20)
    assert all(not weight.requires_grad for weight in method.candidates.weights)
    assert len(adam.state) == len(list(model.head.parameters()))
    head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    method.before_step(SeededStep(model, 2, 20))
    assert len(method.index) == method.sizes[-1]
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, everything[name]), name
    assert all(torch.equal(head[name], one) for name, one in model.head.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert all(weight.requires_grad for weight in method.candidates.weights)


def test_what_is_not_admitted_stays_bit_equal_under_weight_decay() -> None:
    model, method = fishertune(score="random", roles=("q", "fc2"))
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    train(model, range(102), total=102)
    masks = dict(zip(method.candidates.names, chosen(method), strict=True))
    moved = 0
    for name, tensor in model.backbone.state_dict().items():
        same = tensor == before[name]
        if name in masks:
            assert bool(same[~masks[name]].all()), name
            assert float((~same[masks[name]]).float().mean()) > 0.99
            moved += int((~same).sum())
            if "qkv" in name:
                assert not bool(masks[name][64:].any())
        else:
            assert bool(same.all()), name
    assert moved <= method.sizes[-1]


def test_equals_adamw_with_a_mask_and_late_entrants_start_gently() -> None:
    model, method = fishertune(score="random", schedule="grow")
    other, _ = fishertune(score="random", schedule="grow")
    train(model, range(2), total=42)
    train(other, range(2), total=42)
    weight = method.candidates.weights[0]
    name, reference = method.candidates.names[0], weight.detach().double().clone()
    mean = square = torch.zeros_like(reference)
    adam, seen = optimizer.build(SETTINGS, model), torch.zeros_like(weight, dtype=torch.bool)
    first_steps, later_steps = [], []
    for index in range(2, 42):
        step = SeededStep(model, index, 42)
        method.before_step(step)
        mask = dict(zip(method.candidates.names, method._masks, strict=True))[name]
        torch.autograd.backward(torch.stack(list(model(*sample(index, 2)).values())).sum())
        assert weight.grad is not None
        gradient, t = weight.grad.double(), index - 1
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        move = (mean / (1 - 0.9**t)) / ((square / (1 - 0.999**t)).sqrt() + 1e-8)
        decayed = reference * (1 - 1e-2 * 0.3)
        reference = torch.where(mask, decayed - 1e-2 * move, reference)
        adam.step()
        adam.zero_grad(set_to_none=True)
        method.after_step(step)
        assert torch.allclose(weight.double(), reference, atol=1e-6)
        if index > 20:
            first_steps.append(move[mask & ~seen].abs())
            later_steps.append(move[mask & seen].abs())
        seen |= mask
    entered, veterans = torch.cat(first_steps), torch.cat(later_steps)
    assert len(entered) > 50
    assert float(entered.mean() / veterans.mean()) == pytest.approx(1, abs=0.25)


def test_clipping_by_what_is_admitted() -> None:
    model, method = fishertune(score="random", clip=0.5)
    step = SeededStep(model, 2, 20)
    method.before_step(step)
    torch.autograd.backward(500 * torch.stack(list(model(*sample(2, 2)).values())).sum())
    full = [w.grad.clone() for w in method.candidates.weights if w.grad is not None]
    norm = math.sqrt(
        sum(float(g[m].square().sum()) for g, m in zip(full, method._masks, strict=True))
    )
    assert norm > 0.5
    method.before_update(step)
    for weight, gradient in zip(method.candidates.weights, full, strict=True):
        assert torch.allclose(weight.grad, gradient * 0.5 / norm, rtol=1e-4)  # type: ignore[arg-type]
    method.before_update(step)  # small enough now
    assert {id(p) for p in method.unclipped()} == {id(p) for p in method.candidates.weights}


def test_random_queries_only() -> None:
    method, _ = selected(score="random", roles=("q",), share_max=0.02)
    [mask] = {mask[64:].any().item() for mask in chosen(method)}
    assert not mask
    per_block = method.counts.sum(1)
    assert int(per_block.sum()) == round(0.02 * method.candidates.total)
    assert int(per_block.min()) > 0.8 * int(per_block.max())  # chance treats blocks alike


def test_two_processes_choose_the_same() -> None:
    meeting, sums = threading.Barrier(2), {}
    models = [fishertune()[0] for _ in range(2)]

    def averaging(rank: int) -> Any:
        def average(tensor: Tensor) -> Tensor:
            sums[rank] = tensor.clone()
            meeting.wait(60)
            mean = (sums[0] + sums[1]) / 2
            meeting.wait(60)
            return tensor.copy_(mean)

        return average

    lock = threading.Lock()

    class Locked(SeededStep):
        def probes(self, count: int, *, samples: int = 1) -> Any:
            for probe in super().probes(count, samples=samples):
                with lock:  # the seed of the fake is torch's global one
                    yield probe

    def select(rank: int) -> None:
        step = Locked(models[rank], 2, 20, averaged=averaging(rank), first=10 * rank)
        models[rank].method.before_step(step)

    threads = [threading.Thread(target=select, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    one, two = (model.method for model in models)
    assert len(one.index) > 0
    assert torch.equal(one.index, two.index)
    assert torch.equal(one.counts, two.counts)
    assert not torch.equal(one.index, selected()[0].index)


# --- files -----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["grow", "paper"])
@pytest.mark.parametrize("stop", [1, 3, 9])
def test_a_restart_changes_no_bit(kind: str, stop: int) -> None:
    model, method = fishertune(schedule=kind)
    adam = train(model, range(stop), total=14)
    state = {name: tensor.clone() for name, tensor in model.pack().items()}
    moments = {k: v.clone() if isinstance(v, Tensor) else v for k, v in adam.state_dict().items()}
    moments = torch.load(_saved(moments), weights_only=True)
    train(model, range(stop, 14), total=14, adam=adam)

    other, resumed = fishertune(seed=9, schedule=kind)
    other.unpack(state)
    again = optimizer.build(SETTINGS, other)
    again.load_state_dict(moments)
    train(other, range(stop, 14), total=14, adam=again)
    for a, b in zip(weights(model), weights(other), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(method.index, resumed.index)
    for a, b in zip(model.head.parameters(), other.head.parameters(), strict=True):
        assert torch.equal(a, b)


def _saved(state: Any) -> Any:
    import io

    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return stream


def test_the_file_holds_eight_bytes_an_element(tmp_path: Path) -> None:
    model, method = fishertune(share_max=0.3)
    model.restorable = True
    train(model, range(8), total=8)
    packed = {name: tensor.clone() for name, tensor in model.pack().items()}
    assert not any(name.startswith(("rest.", "backbone.")) for name in packed)
    own = {name: tensor for name, tensor in packed.items() if name.startswith("method.")}
    save_model(tmp_path / "model.safetensors", own, {})
    size, elements = (tmp_path / "model.safetensors").stat().st_size, method.sizes[-1]
    assert size < 8 * elements + 10_000
    # 15,209,933 elements and the counts of 120 parts: 122 MB.
    assert round((8 * 15_209_933 + 4 * 120 * 100) / 1e6) == 122
    fresh, loaded = fishertune(share_max=0.3)
    fresh.restorable = True
    for _ in range(2):
        fresh.unpack(packed)
        for a, b in zip(weights(model), weights(fresh), strict=True):
            assert torch.equal(a, b)
    assert all(torch.equal(t, packed[name]) for name, t in loaded.pack(fresh.backbone).items())


# --- what the user sees ----------------------------------------------------------------------
def test_record_and_picture(tmp_path: Path) -> None:
    model, method = fishertune()
    records: list[dict[str, Any]] = []
    adam = None
    for start in (0, 2, 9):
        stop = {0: 2, 2: 9, 9: 16}[start]
        adam = train(model, range(start, stop), total=16, adam=adam)
        records.append({"step": stop, "method": method.record()})
    records = json.loads(json.dumps([*records, {"step": 16, "val": {"miou": 0.1}}]))
    warm, early, late = (line["method"] for line in records[:3])
    assert warm == {"phase": "warmup", "tuned": 0, "tuned_share": 0.0}
    assert late["tuned"] == method.sizes[-1]
    assert late["tuned_share"] == pytest.approx(0.05, abs=1e-4)
    assert "sensitivity" in early
    assert "sensitivity" not in late
    assert 0 < early["domain_share"] < 1
    sizes = dict.fromkeys(("q", "k", "v"), 64 * 64) | dict.fromkeys(("fc1", "fc2"), 256 * 64)
    table = late["tuned_by_part"]
    assert list(table) == list(sizes)
    tuned = sum(share * sizes[role] for role, row in table.items() for share in row)
    assert tuned == pytest.approx(late["tuned"], rel=2e-3)
    mean = sum(score * sizes[role] for role, row in early["sensitivity"].items() for score in row)
    assert mean / method.candidates.size == pytest.approx(1, rel=2e-3)
    [(name, figure)] = FisherTune.draw(records)
    figure.savefig(tmp_path / f"{name}.png")
    assert (tmp_path / "sensitivity.png").stat().st_size > 10_000
    assert figure.axes[0].get_images()[0].get_array().shape == (5, 4)  # type: ignore[union-attr]
    assert not list(FisherTune.draw([{"step": 1, "loss": 0.1}, records[0]]))


# --- bad input -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "said"),
    [({"share_min": 0.2, "share_max": 0.1}, "larger than share_max"),
     ({"share_max": 1.2}, "less than or equal to 1"), ({"share_min": 0}, "greater than 0"),
     ({"amplitude": (2.0, 1.0)}, "least <= largest"), ({"roles": ["q", "q"]}, "named once"),
     ({"roles": []}, "at least 1"), ({"steepness": 0}, "greater than 0"),
     ({"schedule": "shrink"}, "'grow', 'constant' or 'paper'")],
)  # fmt: skip
def test_settings_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FisherTune.Config.model_validate(settings)


def test_phases_longer_than_the_run() -> None:
    model, method = fishertune(estimation=21)
    with pytest.raises(RssegError, match="21 iterations is longer than the run of 20") as caught:
        method.before_step(SeededStep(model, 0, 20))
    assert caught.value.where == "method.estimation"
    model, method = fishertune(warmup=20)
    with pytest.raises(RssegError, match="warm-up of 20 steps leaves nothing") as caught:
        method.before_step(SeededStep(model, 0, 20))
    assert caught.value.where == "method.warmup"


def test_backbones_without_the_candidates() -> None:
    backbone = build("frozen").backbone
    with pytest.raises(RssegError, match="cannot be chosen from") as caught:
        FisherTune(FisherTune.Config(roles=("q",), share_max=0.5), backbone)
    assert "fewer" in caught.value.fix or "smaller" in caught.value.fix
    with pytest.raises(RssegError, match="after \\[4\\] blocks"):
        FisherTune(FisherTune.Config(sites=(0, 4)), backbone)
    backbone.projections = lambda index, role: []  # type: ignore[method-assign]
    with pytest.raises(RssegError, match="block 0 of the backbone has no q weights"):
        FisherTune(FisherTune.Config(), backbone)


@pytest.mark.parametrize("factor", [0.0, float("nan")])
def test_gradients_that_say_nothing(factor: float) -> None:
    model, method = fishertune()
    with pytest.raises(RssegError, match="zero or not finite at step 2"):
        method.before_step(SeededStep(model, 2, 20, factor))
