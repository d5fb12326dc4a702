"""WEFT's pieces against slow or independent references: wavelets, experts, ESTO, SEE."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.layers.haar import Haar
from rsseg_cli.methods._weft.cascade import BatchNorm, Cascade, RunningStatistics
from rsseg_cli.methods._weft.pyramid import Experts, Pyramid, Router, StemNorm, TrainedExperts
from rsseg_cli.methods._weft.spatial_enhancement import Edges, Enhancer, SpatialExpert, join, split
from rsseg_cli.methods._weft.token_optimizer import TokenOptimizer
from rsseg_cli.methods._weft.wavelets import WaveletConvolution


def scramble(module: nn.Module) -> nn.Module:
    """Draw every parameter at random, so that each of them matters."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


# --- wavelets -------------------------------------------------------------------------------------
def haar_filters(channels: int) -> Tensor:
    low, high = torch.tensor([1.0, 1.0]) / math.sqrt(2), torch.tensor([1.0, -1.0]) / math.sqrt(2)
    pairs = ((low, low), (low, high), (high, low), (high, high))  # (down, along the row)
    return torch.stack([torch.outer(*pair) for pair in pairs])[:, None].repeat(channels, 1, 1, 1)


def haar(image: Tensor) -> Tensor:
    return F.conv2d(image, haar_filters(image.shape[1]), stride=2, groups=image.shape[1])


def haar_back(bands: Tensor) -> Tensor:
    channels = bands.shape[1] // 4
    return F.conv_transpose2d(bands, haar_filters(channels), stride=2, groups=channels)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_haar_bands_are_those_of_the_filters(layout: torch.memory_format) -> None:
    image = torch.randn(2, 3, 6, 8).contiguous(memory_format=layout)
    bands, ours = haar(image), Haar()
    assert torch.allclose(ours.analyse(image), bands, atol=1e-6)
    back = haar_back(bands)
    assert torch.allclose(ours.synthesise(bands), back, atol=1e-6)
    assert torch.allclose(back, image, atol=1e-6)
    assert torch.allclose(bands.square().sum(), image.square().sum())  # orthonormal


def test_haar_of_no_images() -> None:
    assert Haar().analyse(torch.zeros(0, 3, 6, 8)).shape == (0, 12, 3, 4)
    assert Haar().synthesise(torch.zeros(0, 12, 3, 4)).shape == (0, 3, 6, 8)


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (8, 5), (7, 5), (1, 1)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_wavelet_convolution(size: tuple[int, int], kernel: int) -> None:
    module = scramble(WaveletConvolution(4, kernel))
    assert isinstance(module, WaveletConvolution)
    z, (height, width) = torch.randn(2, 4, *size), size
    padded = torch.zeros(2, 4, height + height % 2, width + width % 2)
    padded[..., :height, :width] = z
    detail = haar_back(module.bands_scale * module.bands(haar(padded)))
    expected = module.image_scale * module.image(z) + detail[..., :height, :width]
    assert torch.allclose(module(z), expected, atol=1e-5)
    with torch.no_grad():
        delta = torch.zeros(4, 1, kernel, kernel)
        delta[..., kernel // 2, kernel // 2] = 1
        module.bands.weight.copy_(delta.repeat(4, 1, 1, 1))
        module.bands_scale.fill_(1)
        module.image_scale.fill_(0)
    assert (module(z) - z).abs().max() < 1e-6  # analysis and synthesis alone: a round trip


def test_wavelet_filters_are_constants() -> None:
    module = WaveletConvolution(4, 3)
    assert module.haar.filters.abs().unique().tolist() == [0.5]
    assert not list(module.haar.parameters())
    names = set(module.state_dict())
    assert names == {"image.weight", "image.bias", "bands.weight", "image_scale", "bands_scale"}


def small_cascade(running: RunningStatistics = "own") -> Cascade:
    """Build a cascade of 8 channels for 3 levels."""
    return Cascade(8, nn.Conv2d(2, 2, 3, padding=1), levels=3, running=running)


@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize("running", ["own", "shared"])
def test_cascade_is_its_equation(running: RunningStatistics, level: int) -> None:
    module = scramble(small_cascade(running)).eval()
    assert isinstance(module, Cascade)
    for one in (module.norm, module.merge_norm):
        one.statistics.uniform_(0.5, 2)

    def norm(norm: BatchNorm, place: int, x: Tensor) -> Tensor:
        row = place if running == "own" else 0
        return F.batch_norm(x, *norm.statistics[row], norm.weight, norm.bias, eps=1e-5)

    z = torch.randn(2, 8, 5, 4)
    outputs: list[Tensor] = []
    for number in range(4):
        part = z[:, 2 * number : 2 * number + 2]
        filtered = module.filter(part + outputs[-1] if outputs else part)
        outputs.append(norm(module.norm, 4 * level + number, filtered).relu())
    merged = norm(module.merge_norm, level, module.merge(torch.cat(outputs, 1) + z)).relu()
    assert torch.allclose(module(z, level), merged, atol=1e-5)


# --- batch norm -----------------------------------------------------------------------------------
def test_batch_norm_of_a_single_value() -> None:
    ours = BatchNorm(3).train()
    ours.statistics[0, 0] = torch.tensor([1.0, 2.0, 3.0])
    x = torch.randn(1, 3, 1, 1)
    expected = (x - torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)) / math.sqrt(1 + 1e-5)
    assert torch.allclose(ours(x), expected, atol=1e-6)
    plain = nn.BatchNorm2d(3).train()
    x = torch.randn(2, 3, 1, 2)
    assert torch.equal(BatchNorm(3).train()(x), plain(x))


@pytest.mark.parametrize("running", ["own", "shared"])
def test_places_of_a_batch_norm_are_batch_norms_of_their_own(running: RunningStatistics) -> None:
    ours = BatchNorm(3, 2, running).train()
    rows = 2 if running == "own" else 1
    plain = [nn.BatchNorm2d(3, momentum=None).train() for _ in range(rows)]
    for number in range(8):  # fewer than 1 / momentum: all count alike, as with `momentum=None`
        place = int(number > 2)
        x = (1 + place) * torch.randn(2, 3, 4, 5) + 3 * place
        expected = plain[place % rows](x)
        assert torch.allclose(ours(x, place), expected, atol=1e-6)
    ours.eval()
    x = torch.randn(2, 3, 4, 5)
    for place in range(2):
        assert torch.allclose(ours(x, place), plain[place % rows].eval()(x), atol=1e-5)


def test_running_statistics_follow_what_changes() -> None:
    ours, plain = BatchNorm(3), nn.BatchNorm2d(3)
    for _ in range(200):
        x = torch.randn(2, 3, 4, 5) + 5
        ours(x)
        plain(x)
    assert plain.running_mean is not None
    assert plain.running_var is not None
    assert torch.allclose(ours.statistics[0, 0], plain.running_mean, atol=1e-5)
    assert torch.allclose(ours.statistics[0, 1], plain.running_var, atol=1e-5)


def test_a_place_without_batches_is_judged_like_the_others() -> None:
    norm = BatchNorm(1, 3)
    for place, mean in ((0, 2.0), (2, 4.0)):
        norm(torch.tensor([mean - 1, mean + 1]).view(1, 1, 1, 2), place)
    trained = norm.statistics.clone()
    norm.eval()
    assert norm.statistics.flatten(1).tolist() == [[2.0, 2.0], [3.0, 2.0], [4.0, 2.0]]
    norm.train()
    norm(torch.tensor([6.0, 8.0]).view(1, 1, 1, 2), 1)
    assert norm.statistics[:, 0].flatten().tolist() == [2.0, 7.0, 4.0]  # now it has its own
    assert torch.equal(norm.statistics[[0, 2]], trained[[0, 2]])
    fresh = BatchNorm(1, 3).eval()
    assert fresh.statistics.flatten(1).tolist() == [[0.0, 1.0]] * 3


def plainly(module: Cascade, z: Tensor) -> Tensor:
    """Pass a cascade with all activations kept."""
    merged, statistics = module.filtered(z, 1)
    module.update(statistics, 1)
    return merged


@pytest.mark.parametrize("running", ["own", "shared"])
def test_recomputing_changes_neither_gradients_nor_statistics(running: RunningStatistics) -> None:
    gradients, states = [], []
    for call in (plainly, lambda module, z: module(z, 1)):
        torch.manual_seed(0)
        module = small_cascade(running).train()
        x = torch.randn(2, 8, 5, 4, requires_grad=True)
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = call(module, x)
        result.square().sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in module.parameters())])
        states.append(module.state_dict())
        if call is not plainly:
            assert sum(kept) < 4 * x.numel()
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None
        assert torch.equal(plain, again)
    assert states[0]["norm.batches"].sum() == 4
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_a_compiled_expert_learns_the_same() -> None:
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        expert = SpatialExpert(8, levels=2, laplacian="free", pool="adaptive", running="own")
        # The backend goes as far as a device's code generator needs it, without generating any.
        call = torch.compile(expert, backend="aot_eager", fullgraph=True) if compiled else expert
        z = torch.randn(2, 8, 8, 8, requires_grad=True)
        answer = call(z, 1)
        answer.square().sum().backward()
        results.append((answer, z.grad, expert.cascades[0].merge.weight.grad, expert.state_dict()))
    *plain, state = results[0]
    *compiled, compiled_state = results[1]
    for one, other in zip(plain, compiled, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    for name, tensor in state.items():
        assert torch.allclose(tensor, compiled_state[name], atol=1e-6), name


# --- experts --------------------------------------------------------------------------------------
def test_router_shares() -> None:
    features = torch.randn(5, 8, 3, 3)
    plain = Router(8, 7, active=4, shares="proportional")
    released = Router(8, 7, active=4, shares="softmax")
    for router in (plain, released):
        nn.init.normal_(router.gate.weight, std=4.0)
    released.load_state_dict(plain.state_dict())
    gate = (features.mean((2, 3)) @ plain.gate.weight.T + plain.gate.bias).softmax(1)
    for router in (plain, released):
        shares, chosen = router(features)
        assert torch.allclose(shares.sum(1), torch.ones(5))
        assert torch.equal(chosen, gate >= gate.sort(1, descending=True)[0][:, 3:4])
        assert torch.equal(shares > 0, chosen)
    ratio = plain(features)[0] / gate
    top = ratio[ratio > 0].view(5, 4)
    assert torch.allclose(top, top[:, :1].expand(5, 4))  # the gate's own proportions
    least, most = 1 / (math.e + 3), math.e / (math.e + 3)
    softened = released(features)[0]
    softened = softened[softened > 0]
    assert least - 1e-6 < softened.min() < softened.max() < most + 1e-6  # it cannot decide


def small_experts(kernels: tuple[int, ...], *, active: int, trained: TrainedExperts) -> Experts:
    """Build experts of 8 channels."""
    return Experts(8, kernels, active=active, shares="proportional", trained=trained, running="own")


def test_experts_that_nobody_chose_are_not_computed() -> None:
    torch.manual_seed(0)
    module = small_experts((1, 3, 5, 7), active=2, trained="chosen").eval()
    nn.init.normal_(module.router.gate.weight, std=2.0)
    features = torch.randn(3, 8, 4, 6)
    seen = [0, 0, 0, 0]

    def count(number: int) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[number] += len(inputs[0])

        return hook

    for number, expert in enumerate(module.experts):
        expert.register_forward_pre_hook(count(number))
    total, chosen = module(features, 3)
    assert seen == chosen.sum(0).tolist()
    assert sum(seen) == 2 * 3
    shares, _ = module.router(features)
    dense = features.clone()
    for number, expert in enumerate(module.experts):
        dense += shares[:, number, None, None, None] * expert(features, 3)
    assert torch.allclose(total, dense, atol=1e-5)


def test_all_experts_are_computed_where_they_must() -> None:
    module = small_experts((1, 3, 5), active=1, trained="all")
    module(torch.randn(2, 8, 4, 4), 0)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    norms = [norm for norm in module.modules() if isinstance(norm, BatchNorm)]
    assert all(norm.batches.any() for norm in norms)


@pytest.mark.parametrize("patch", [8, 14, 16])
@pytest.mark.parametrize("grid", [(4, 6), (3, 5)])
def test_pyramid_keeps_its_place_beside_the_patches(patch: int, grid: tuple[int, int]) -> None:
    height, width = grid
    pyramid = Pyramid(5, 24, channels=8, experts=None, running="own")
    maps = pyramid(torch.randn(2, 5, height * patch, width * patch), grid)
    half = (-(-height // 2), -(-width // 2))
    sizes = [(4 * height, 4 * width), (2 * height, 2 * width), grid, half]
    assert [tuple(level.shape) for level in maps] == [(2, 8, *size) for size in sizes]
    assert pyramid.wide(maps[2]).shape == (2, 24, *grid)


@torch.no_grad()
@pytest.mark.parametrize("stem_norm", ["image", "batch"])
def test_a_stem_by_image_does_not_see_contrast(stem_norm: StemNorm) -> None:
    pyramid = Pyramid(2, 8, channels=8, experts=None, running="own", stem_norm=stem_norm).eval()
    image = torch.randn(1, 2, 64, 64)
    maps, brighter = pyramid(image, (4, 4)), pyramid(3 * image, (4, 4))
    same = [torch.allclose(a, b, atol=1e-4) for a, b in zip(maps, brighter, strict=True)]
    assert same == [stem_norm == "image"] * 4


# --- ESTO -----------------------------------------------------------------------------------------
def optimise_slowly(module: TokenOptimizer, tokens: Tensor) -> Tensor:
    batch, _, dim = tokens.shape
    width = dim // module.heads
    alike = torch.zeros_like(tokens)
    unit = tokens / tokens.norm(dim=2, keepdim=True)
    for head in range(module.heads):
        own = slice(head * width, (head + 1) * width)
        if module.similarity == "token":
            logits = unit[..., own] @ unit[..., own].mT / math.sqrt(width)
        else:
            cosine = torch.cosine_similarity(
                tokens[:, :, None, own], tokens[:, None, :, own], dim=-1
            )
            logits = cosine / module.log_temperature[head].exp()
        alike[..., own] = logits.softmax(-1) @ tokens[..., own]
    variance = torch.stack([image.var(dim=1) for image in tokens])
    if module.statistics == "batch":
        standard = (variance - variance.mean()) / (variance.std() + 1e-6)
    else:
        standard = torch.stack([(v - v.mean()) / (v.std() + 1e-6) for v in variance])
    alike = alike * (1 + 0.5 * standard.sigmoid()[..., None])
    for image in range(batch):
        gate = (module.gate.weight * tokens[image].mean() + module.gate.bias).sigmoid()
        alike[image] *= gate.item()
    return tokens + alike


@torch.no_grad()
@pytest.mark.parametrize("similarity", ["head", "token"])
@pytest.mark.parametrize("statistics", ["image", "batch"])
def test_esto_is_its_equations(similarity: Any, statistics: Any) -> None:
    module = scramble(TokenOptimizer(16, heads=4, similarity=similarity, statistics=statistics))
    assert isinstance(module, TokenOptimizer)
    tokens = torch.randn(3, 10, 16) * torch.rand(3, 10, 1)
    assert torch.allclose(module(tokens), optimise_slowly(module, tokens), atol=1e-5)
    alone = torch.cat([module(image[None]) for image in tokens])
    assert torch.allclose(module(tokens), alone, atol=1e-5) == (statistics == "image")


@torch.no_grad()
def test_released_similarity_is_nearly_the_mean_token() -> None:
    tokens = torch.randn(1, 64, 256)
    mean = tokens.mean(1, keepdim=True).expand_as(tokens)
    distance = {}
    for similarity in ("head", "token"):
        module = TokenOptimizer(256, heads=4, similarity=similarity, statistics="image")  # type: ignore[arg-type]
        distance[similarity] = float((module._attend(tokens) - mean).norm() / mean.norm())
    assert distance["token"] < 0.2 < 2 < distance["head"]


# --- SEE ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sizes", [[(8, 12), (4, 6), (2, 3)], [(10, 6), (5, 3), (3, 2)]])
def test_split_and_join_undo_each_other(sizes: list[tuple[int, int]]) -> None:
    tokens = torch.randn(2, sum(h * w for h, w in sizes), 5)
    maps = split(tokens, sizes)
    assert [tuple(level.shape) for level in maps] == [(2, 5, *size) for size in sizes]
    assert torch.equal(maps[1][1, :, 1, 2], tokens[1, sizes[0][0] * sizes[0][1] + sizes[1][1] + 2])
    assert torch.equal(join(maps), tokens)


@torch.no_grad()
def test_directional_edges_answer_only_to_edges() -> None:
    edges = scramble(Edges(3, "directional"))
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    plane = (2 * x - 3 * y + 5).expand(1, 3, 6, 7)
    assert edges(plane)[..., 1:-1, 1:-1].abs().max() < 1e-4
    steps = {"x": (x > 3), "y": (y > 2), "diagonal": (x + y > 6)}
    assert all(edges(step.float().expand(1, 3, 6, 7)).abs().max() > 0.1 for step in steps.values())
    parabola = Edges(3, "directional")((x**2).expand(1, 3, 6, 7))[..., 1:-1, 1:-1]
    assert torch.allclose(parabola, torch.tensor(2.0 * 3 / 4))  # three of four directions see x


@torch.no_grad()
def test_released_edges_see_one_direction() -> None:
    edges = Edges(2, "free")
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    assert torch.allclose(edges((x**2).expand(1, 2, 6, 7))[..., 1:-1, 1:-1], torch.tensor(6.0))
    assert edges((y**2).expand(1, 2, 6, 7)).abs().max() < 1e-5
    assert edges(torch.ones(1, 2, 1, 1)).shape == (1, 2, 1, 1)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["adaptive", "identity"])
def test_spatial_expert_is_its_equation(pool: Any) -> None:
    module = scramble(SpatialExpert(8, levels=2, laplacian="free", pool=pool, running="own")).eval()
    assert isinstance(module, SpatialExpert)
    z = torch.randn(2, 8, 8, 4)
    coarse = z
    if pool == "adaptive":
        coarse = F.interpolate(F.max_pool2d(z, 4), (8, 4), mode="bilinear")
        assert not torch.equal(coarse, z)
    a, b, c = module.shares[1].softmax(0)
    wide = sum(cascade(z, 1) for cascade in module.cascades)
    expected = F.gelu(z + a * module.edges(z) + b * coarse + c * wide)
    assert torch.allclose(module(z, 1), expected, atol=1e-5)


def test_paths_are_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    sizes = [(4, 4), (2, 2)]
    expert = SpatialExpert(8, levels=2, laplacian="directional", pool="adaptive", running="own")
    module = Enhancer(16, 8, expert, drop_path=0.5)
    tokens = torch.randn(64, 20, 16)
    after = module(tokens, sizes, tokens, (4, 5))
    same = [torch.equal(a, b) for a, b in zip(after, tokens, strict=True)]
    assert 16 < sum(same) < 48
    after = module.eval()(tokens, sizes, tokens, (4, 5))
    assert not any(torch.equal(a, b) for a, b in zip(after, tokens, strict=True))
