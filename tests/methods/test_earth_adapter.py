"""Earth-Adapter against its equations written out with full complex transforms, in float64."""

from __future__ import annotations

import pytest
import torch
from fakes import at_vit_large, build
from test_contract import BANDS
from torch import Tensor

from rsseg_cli.contract import Grid
from rsseg_cli.errors import RssegError
from rsseg_cli.methods.earth_adapter import (
    EarthAdapter,
    FrequencyExperts,
    Spectrum,
    low_pass,
    smooth,
)

GRIDS = [Grid(8, 8), Grid(7, 5), Grid(9, 6), Grid(6, 9), Grid(32, 32), Grid(4, 6, groups=3)]


def split(images: Tensor, rho: float) -> tuple[Tensor, Tensor]:
    """The published split of (..., h, w): boxes of the shifted spectrum, real parts."""
    h, w = images.shape[-2:]
    cut = max(1, int(min(h, w) * rho / 2))
    box = torch.zeros(h, w, dtype=torch.bool)
    box[max(0, h // 2 - cut) : h // 2 + cut, max(0, w // 2 - cut) : w // 2 + cut] = True
    spectrum = torch.fft.fftshift(torch.fft.fft2(images, norm="ortho"), dim=(-2, -1))
    halves = (spectrum * box, spectrum * ~box)
    low, high = (
        torch.fft.ifft2(torch.fft.ifftshift(half, dim=(-2, -1)), norm="ortho").real
        for half in halves
    )
    return low, high


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("rho", [0.2, 0.3, 0.9, 1.0])
def test_low_and_high_are_the_published_halves(grid: Grid, rho: float) -> None:
    tokens = torch.randn(2, grid.tokens, 3)
    low, high = split(grid.to_images(tokens).double(), rho)
    ours = smooth(tokens, grid, low_pass(grid.h, grid.w, rho=rho, box="paper"))
    assert torch.allclose(ours.double(), grid.to_tokens(low), atol=1e-5)
    assert torch.allclose((tokens - ours).double(), grid.to_tokens(high), atol=1e-5)
    assert torch.allclose(low + high, grid.to_images(tokens).double(), atol=1e-12)


@pytest.mark.parametrize(("rho", "side"), [(0.3, 8), (0.2, 6), (0.01, 2)])
def test_size_of_the_box(rho: float, side: int) -> None:
    # A delta at the origin has a flat spectrum: its answer there is the share of what passes.
    delta = torch.zeros(1, 32 * 32, 1)
    delta[0, 0] = 1
    answer = smooth(delta, Grid(32, 32), low_pass(32, 32, rho=rho, box="paper"))
    assert answer[0, 0].item() * 32 * 32 == pytest.approx(side**2, abs=1e-3)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_symmetric_box_passes_or_stops(grid: Grid) -> None:
    gain = low_pass(grid.h, grid.w, rho=0.5, box="symmetric")
    assert set(gain.flatten().tolist()) == {0.0, 1.0}
    tokens = torch.randn(1, grid.tokens, 2)
    once = smooth(tokens, grid, gain)
    assert torch.allclose(smooth(once, grid, gain), once, atol=1e-5)  # a projection


def test_a_constant_is_all_low() -> None:
    grid = Grid(7, 10)
    tokens = torch.full((1, 70, 4), 3.5)
    assert torch.allclose(
        smooth(tokens, grid, low_pass(7, 10, rho=0.2, box="paper")), tokens, atol=1e-5
    )


def written_out(experts: FrequencyExperts, tokens: Tensor, grid: Grid, rho: float) -> Tensor:
    """Split X over all its channels, three bottlenecks, a softmax per token: the equations."""
    b, dim = experts.hidden, tokens.shape[-1]
    down, bias = experts.down.weight.double(), experts.down.bias.double()
    up = experts.up.weight.double()
    low, high = (grid.to_tokens(half) for half in split(grid.to_images(tokens.double()), rho))
    weights = (tokens.double() @ down[3 * b :].T + bias[3 * b :]).softmax(-1)
    total = torch.zeros(*tokens.shape[:-1], dim, dtype=torch.float64)
    for number, part in enumerate((tokens.double(), low, high)):
        rows = slice(number * b, (number + 1) * b)
        units = (part @ down[rows].T + bias[rows]).clamp(min=0)
        answer = units @ up[:, rows].T + up[:, 3 * b + number]
        total += weights[..., number : number + 1] * answer
    return experts.scale.double() * total


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("skip", [0, 1, 5])
def test_experts_written_out(grid: Grid, skip: int) -> None:
    torch.manual_seed(2)
    experts = FrequencyExperts(16, 6, start="random")
    torch.nn.init.constant_(experts.scale, 0.4)
    tokens = torch.randn(2, skip + grid.tokens, 16)
    gain = low_pass(grid.h, grid.w, rho=0.4, box="paper")
    with torch.no_grad():
        added = experts(tokens, Spectrum(grid, gain=gain), skip)
        expected = written_out(experts, tokens[:, skip:], grid, 0.4)
    assert torch.allclose(added[:, skip:].double(), expected, atol=1e-5)
    assert not added[:, :skip].any()


def test_gradients_written_out() -> None:
    torch.manual_seed(3)
    experts, grid = FrequencyExperts(12, 4, start="random"), Grid(5, 6)
    tokens = torch.randn(1, 30, 12)
    target = torch.randn(1, 30, 12)
    parameters = list(experts.parameters())
    gain = low_pass(5, 6, rho=0.5, box="paper")
    ours = (experts(tokens, Spectrum(grid, gain=gain), 0) * target).sum()
    theirs = (written_out(experts, tokens, grid, 0.5) * target).sum()
    for a, b in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("grid", [Grid(7, 5), Grid(12, 10)], ids=str)
def test_bfloat16_keeps_the_transform_in_float32(grid: Grid) -> None:
    torch.manual_seed(4)
    experts = FrequencyExperts(32, 8, start="random")
    tokens = torch.randn(2, 1 + grid.tokens, 32)
    gain = low_pass(grid.h, grid.w, rho=0.3, box="paper")
    exact = experts(tokens, Spectrum(grid, gain=gain), 1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = experts(tokens, Spectrum(grid, gain=gain), 1)
        assert smooth(tokens[:, 1:].bfloat16(), grid, gain).dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.02 * exact.abs().max()


def test_starts_as_the_frozen_backbone_unless_told() -> None:
    image = torch.randn(2, 4, 40, 64)
    plain = build("frozen")
    before = plain.backbone(image, plain.method).maps
    for start, same in (("identity", True), ("random", False)):
        tuned = build("earth_adapter", start=start, split_blocks=(0, 3))
        after = tuned.backbone(image, tuned.method).maps
        assert all(torch.equal(a, b) is same for a, b in zip(before, after, strict=True))


def test_the_other_blocks_have_one_expert() -> None:
    model = build("earth_adapter", start="random", split_blocks=(1,), bottleneck=8).eval()
    blocks = model.method.blocks  # type: ignore[union-attr]
    assert [isinstance(block, FrequencyExperts) for block in blocks] == [False, True, False, False]  # type: ignore[operator, union-attr]
    single, x = blocks[0], torch.randn(1, 1 + 6, 64)  # type: ignore[index]
    added = single(x, Spectrum(Grid(2, 3), gain=torch.ones(2, 2)), 1)
    units = (x[:, 1:] @ single.expert.down.weight.T + single.expert.down.bias).clamp(min=0)
    expected = 0.1 * (units @ single.expert.up.weight.T + single.expert.up.bias)
    assert torch.allclose(added[:, 1:], expected, atol=1e-6)
    assert not added[:, 0].any()


@pytest.mark.parametrize("wanted", [(4,), (-1,), (0, 9)])
def test_blocks_that_are_not_there(wanted: tuple[int, ...]) -> None:
    with pytest.raises(RssegError, match=r"split_blocks") as caught:
        build("earth_adapter", split_blocks=wanted)
    assert "0..3" in caught.value.fix


@pytest.mark.parametrize(
    ("bottleneck", "count"),
    [(16, 24 * 104_500), (24, 24 * 153_676), (32, 24 * 202_852), (64, 9_589_344)],
)
def test_counts_at_vit_large(bottleneck: int, count: int) -> None:
    backbone, method = at_vit_large(EarthAdapter, BANDS, bottleneck=bottleneck)
    assert sum(p.numel() for _, p in method.trainable_parameters(backbone)) == count


def test_routing_is_the_routers_and_all_goes_to_the_only_expert() -> None:
    model = build("earth_adapter", bottleneck=8, split_blocks=[1]).eval()
    backbone, method = model.backbone, model.method
    image = torch.randn(2, 4, 32, 48)
    seen: list[Tensor] = []
    router = method.blocks[1]
    with torch.no_grad():
        router.down.weight.normal_()
    softmax = torch.Tensor.softmax

    def watch(logits: Tensor, dim: int) -> Tensor:
        seen.append(softmax(logits, dim))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.Tensor, "softmax", watch)
        backbone(image, method)
    (weights,) = seen
    side = backbone.patch
    shares = method.explain("routing", backbone.walk(image, method, stop=1)[1])
    expected = weights[:, -shares[0, 0].numel() :].mT.reshape(2, 3, 32 // side, 48 // side)
    assert torch.allclose(shares, expected, atol=1e-6)
    alone = method.explain("routing", backbone.walk(image, method, stop=0)[1])
    assert torch.equal(alone[:, 0], torch.ones(2, 32 // side, 48 // side))
