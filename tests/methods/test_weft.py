"""WEFT as a whole: its size, its streams, its switches, and what it must leave alone."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from fakes import UNIT_RGB as BANDS
from fakes import tiny_vit
from pydantic import ValidationError
from torch import Tensor, nn

from rsseg_cli import config, presets
from rsseg_cli.backbones.dinov2 import Dinov2
from rsseg_cli.backbones.galileo import Galileo
from rsseg_cli.backbones.uniperceiver import Uniperceiver
from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import Backbone, Bands, Grid, Method, State
from rsseg_cli.errors import RssegError
from rsseg_cli.heads.linear import Linear
from rsseg_cli.heads.mask2former import Mask2Former
from rsseg_cli.methods.weft import Weft, WeftState
from rsseg_cli.segmenter import Segmenter

PRESET = presets.read(presets.find("methods", "weft_released")).values
RELEASED: dict[str, Any] = {
    key: PRESET["method"][key]
    for key in (
        "shares", "trained_experts", "running", "similarity", "statistics", "output_norm",
        "laplacian", "pool", "drop_path",
    )
}  # fmt: skip
SMALL: dict[str, Any] = {"channels": 8, "kernels": (1, 3, 5), "active": 2}


def make(backbone: Backbone | None = None, **settings: Any) -> tuple[Weft, Backbone]:
    torch.manual_seed(0)
    backbone = backbone or tiny_vit(BANDS)
    return Weft(Weft.Config(**(SMALL | settings)), backbone), backbone


def wake(method: Weft) -> Weft:
    """Draw parameters and running statistics at random, so that every part acts."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in method.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator)
                tensor.add_(drawn.abs() if name.endswith("running_var") else 0.1 * drawn)
    return method


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- size -----------------------------------------------------------------------------------------
def test_released_model_has_the_published_size() -> None:
    run = config.resolve(method="weft_released", file=None, pretrained=False)
    with torch.device("meta"):
        backbone = Uniperceiver(run.backbone, BANDS)  # type: ignore[arg-type]
        method = Weft(run.method.config, backbone)  # type: ignore[arg-type]
        head = Mask2Former(
            run.head.config, dim=1024, maps=method.num_feature_maps(backbone), classes=2
        )  # type: ignore[arg-type]
    assert count(method.pyramid) == 173_303
    assert count(method.injectors) == 6_582_536
    assert count(method.enhancers) == 4_408_374
    assert method.level_embed.numel() + count(method.norms) == 3_072 + 8_192
    assert count(method) == 11_175_477
    tuned = count(method) + count(head)
    assert tuned == 14_373_720
    # 8,192 of the file's numbers are positions of other frames, 1,024 the bias of the patches,
    # which is added to the positions.
    assert count(backbone) == 303_356_928 - 8_192 - 1_024
    assert f"{tuned / (count(backbone) + tuned):.3%}" == "4.524%"


def test_presets_differ_only_where_the_release_is_odd() -> None:
    ours, released = (config.resolve(method=name, file=None) for name in ("weft", "weft_released"))
    first, second = ours.method.config.model_dump(), released.method.config.model_dump()
    assert {key for key in first if first[key] != second[key]} == set(RELEASED)
    assert first == Weft.Config().model_dump()
    assert ours.head == released.head
    assert ours.optimizer == released.optimizer


# --- streams --------------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, RELEASED, {"extractor_attention": True}])
def test_with_gamma_0_the_tokens_are_the_plain_ones(settings: dict[str, Any]) -> None:
    method, backbone = make(**settings)
    wake(method)
    for injector in method.injectors:
        injector.get_parameter("gamma").zero_()
    image = torch.randn(2, 3, 48, 80)
    plain, grid = backbone.embed(image)
    tokens, state = plain, method.begin(image, grid)
    for index in range(backbone.depth):
        tokens = method.before_block(index, tokens, state)
        tokens = method.after_block(index, backbone.run(index, tokens, grid), state)
        plain = backbone.run(index, plain, grid)
        assert torch.equal(tokens, plain)
        assert torch.equal(state.stages[index], backbone.to_map(plain, grid))
    maps = method.finish([], state).maps
    sizes = [(24, 40), (12, 20), (6, 10), (3, 5)]
    assert [tuple(level.shape) for level in maps] == [(2, 64, *size) for size in sizes]


@torch.no_grad()
def test_prefix_tokens_are_not_injected_into() -> None:
    method, backbone = make()
    wake(method).eval()
    image = torch.randn(1, 3, 32, 32)
    tokens, grid = backbone.embed(image)
    after = method.before_block(0, tokens, method.begin(image, grid))
    assert torch.equal(
        after[:, : backbone.num_prefix_tokens], tokens[:, : backbone.num_prefix_tokens]
    )
    changed = (after != tokens)[:, backbone.num_prefix_tokens :]
    assert changed.all(2).all()


@torch.no_grad()
@pytest.mark.parametrize("output_norm", ["layer", "batch"])
def test_maps_are_the_sum_of_both_streams(output_norm: str) -> None:
    method = wake(make(see=False, output_norm=output_norm)[0]).eval()
    image = torch.randn(1, 3, 32, 48)
    grid = Grid(4, 6)
    state = method.begin(image, grid)
    narrow = method.pyramid(image, (grid.h, grid.w))
    finest, double, single, half = (method.pyramid.wide(level) for level in narrow)
    double, single, half = (
        level + embed.view(1, -1, 1, 1)
        for level, embed in zip((double, single, half), method.level_embed, strict=True)
    )
    state.stages = [torch.randn(1, 64, grid.h, grid.w) for _ in range(4)]

    def resize(x: Tensor, scale: float) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=scale, mode="bilinear")

    expected = (
        finest + resize(double, 2) + resize(state.stages[0], 4),
        double + resize(state.stages[1], 2),
        single + state.stages[2],
        half + resize(state.stages[3], 0.5),
    )
    for found, norm, level in zip(
        method.finish([], state).maps, method.norms, expected, strict=True
    ):
        assert torch.allclose(found, norm(level), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"extractor_attention": True}, RELEASED])
def test_an_image_does_not_depend_on_its_neighbours(settings: dict[str, Any]) -> None:
    method, backbone = make(**settings)
    wake(method).eval()
    images = torch.randn(3, 3, 32, 48) * torch.tensor([0.2, 1.0, 5.0]).view(3, 1, 1, 1)
    together = backbone(images, method).maps
    alone = [backbone(image[None], method).maps for image in images]
    same = all(
        torch.allclose(level, torch.cat(parts), atol=1e-3, rtol=1e-3)
        for level, parts in zip(together, zip(*alone, strict=True), strict=True)
    )
    assert same == (settings.get("statistics") != "batch")


def test_nothing_else_moves() -> None:
    method, backbone = make(extractor_attention=True)
    head = Linear(Linear.Config(), dim=64, maps=4, classes=2)
    model = Segmenter(backbone, method, head, BANDS).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    start = {name: tensor.clone() for name, tensor in method.named_parameters()}
    adam = torch.optim.AdamW([tensor for _, tensor in model.trainable_parameters()], lr=1e-2)
    image = torch.randn(3, 3, 32, 48)
    losses = []
    for seed in range(6):
        torch.manual_seed(seed)
        loss = torch.stack(list(model(image, (image[:, 0] > 0).long()).values())).sum()
        torch.autograd.backward(loss)
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    stuck = {name for name, tensor in method.named_parameters() if torch.equal(tensor, start[name])}
    unused = {name for name in start if name.startswith("pyramid.experts.experts")}
    assert stuck <= unused  # an expert may have been chosen by no image


def test_the_first_step_moves_only_the_gate_of_an_injector() -> None:
    method, backbone = make()
    head = Linear(Linear.Config(), dim=64, maps=4, classes=2)
    model = Segmenter(backbone, method, head, BANDS).train()
    image = torch.randn(2, 3, 32, 32)
    torch.autograd.backward(sum(model(image, (image[:, 0] > 0).long()).values()))
    for injector in method.injectors:
        for name, parameter in injector.named_parameters():
            assert parameter.grad is not None
            assert bool(parameter.grad.any()) == (name == "gamma"), name


# --- switches -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("twe", "esto", "see"), list(product((True, False), repeat=3)))
def test_every_row_of_the_ablation_trains(twe: bool, esto: bool, see: bool) -> None:
    method, backbone = make(twe=twe, esto=esto, see=see)
    wake(method).train()
    maps = backbone(torch.randn(2, 3, 32, 48), method).maps
    torch.autograd.backward(sum(level.square().mean() for level in maps))
    names = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert any("experts" in name for name in names) == twe
    assert any("optimizer" in name for name in names) == esto
    assert any("enhancers" in name for name in names) == see
    missing = {name for name, _ in method.named_parameters()} - names
    assert all(name.startswith("pyramid.experts.experts") for name in missing)


@torch.no_grad()
@pytest.mark.parametrize("active", [1, 2, 4, 6])
def test_active_experts(active: int) -> None:
    method, backbone = make(active=active, kernels=(1, 3, 5, 7, 9, 11, 13))
    backbone(torch.randn(2, 3, 16, 16), method.train())
    record = method.log_entry()
    shares = record["experts"]
    assert isinstance(shares, list)
    assert len(shares) == 7
    assert sum(shares) == pytest.approx(active)  # type: ignore[arg-type]
    assert record["injection"] == [0.0] * 4


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"active": 4}, "4 active of 3 experts"),
        ({"kernels": (1, 2)}, "not all odd"),
        ({"channels": 10}, "multiple of 4"),
        ({"drop_path": 1.0}, "less than 1"),
        ({"pool": "max"}, "adaptive"),
        ({"experts": 4}, "Extra inputs"),
    ],
)
def test_bad_settings(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Weft.Config(**(SMALL | settings))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"subspaces": 5}, "64 channels cannot be split into 5"),
        ({"enhancer_ratio": 0.1}, "6 channels cannot be split into 4"),
        ({"heads": 5}, "32 channels cannot be split into 5"),
    ],
)
def test_settings_that_do_not_fit_the_backbone(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(RssegError, match=reason):
        make(**settings)


def test_a_backbone_with_too_few_blocks() -> None:
    backbone = tiny_vit(BANDS)
    backbone.depth = 3
    with pytest.raises(RssegError, match="4 stages, the backbone has 3 blocks"):
        make(backbone)


# --- other backbones, other sizes -----------------------------------------------------------------
class Plain(Method[State]):
    """Does nothing."""


@torch.no_grad()
def test_groups_of_a_place_ask_together() -> None:
    bands = Bands(
        names=("red", "green", "blue", "nir"),
        wavelengths_nm=(665.0, 560.0, 490.0, 842.0),
        mean=(0.0,) * 4,
        std=(1.0,) * 4,
        dtype="uint16",
        scale=1.0e-4,
    )
    backbone = Galileo(Galileo.Config(name="galileo_nano", pretrained=False), bands)
    method, _ = make(backbone)
    wake(method).eval()
    image = torch.randn(2, 4, 32, 48)
    tokens, grid = backbone.embed(image)
    assert grid.groups > 1
    added = method.before_block(0, tokens, method.begin(image, grid)) - tokens
    per_group = added.view(2, grid.h, grid.w, grid.groups, -1)
    assert torch.allclose(per_group, per_group[..., :1, :].expand_as(per_group), atol=1e-5)
    assert per_group.flatten(1, 2).std(1).min() > 0  # but places differ
    maps = backbone(image, method).maps
    assert [tuple(level.shape[2:]) for level in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    plain = backbone(image, Plain(Method.Config(), backbone)).maps
    assert not torch.allclose(backbone(image, method).maps[2], plain[-1])


@torch.no_grad()
@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (1, 2), (7, 2)])
def test_any_grid(grid: tuple[int, int]) -> None:
    method, backbone = make(**RELEASED)
    wake(method)
    height, width = grid
    image = torch.randn(1, 3, height * 8, width * 8)
    for training in (True, False):
        maps = backbone(image, method.train(training)).maps
        assert [level.shape[2] for level in maps] == [
            4 * height, 2 * height, height, -(-height // 2),
        ]  # fmt: skip
        assert all(torch.isfinite(level).all() for level in maps)


@torch.no_grad()
def test_a_patch_of_14_and_sides_of_no_multiple() -> None:
    backbone = Dinov2(Dinov2.Config(name="dinov2_small", pretrained=False), BANDS)
    method, _ = make(backbone)
    assert method.multiple == 28
    head = Linear(Linear.Config(), dim=backbone.dim, maps=4, classes=2)
    model = Segmenter(backbone, wake(method), head, BANDS).eval()
    assert model.probabilities(torch.randn(1, 3, 45, 61)).shape == (1, 2, 45, 61)


def test_sides_are_padded_to_32_at_patch_16() -> None:
    with torch.device("meta"):
        backbone = Vit(Vit.Config(name="vit_small", pretrained=False), BANDS)
        method = Weft(Weft.Config(), backbone)
    assert method.multiple == 32


def test_stages_are_equal_runs_of_blocks() -> None:
    with torch.device("meta"):
        backbone = Vit(Vit.Config(name="vit_large", pretrained=False), BANDS)
        method = Weft(Weft.Config(), backbone)
    assert list(method.first) == [0, 6, 12, 18]
    assert list(method.last) == [5, 11, 17, 23]
    state = WeftState(Grid(1, 1))
    assert state.stages == []


# --- pictures -------------------------------------------------------------------------------------
def test_pictures_of_a_run() -> None:
    lines: list[dict[str, Any]] = [
        {"step": step, "method": {"experts": [0.5, 1.0], "injection": [step * 0.1] * 4}}
        for step in (50, 100)
    ]
    lines.insert(1, {"step": 60, "val": {"miou": 50.0}})
    pictures = dict(Weft.figures(lines))
    left, right = next(iter(pictures.values())).axes
    assert [len(axis.lines) for axis in (left, right)] == [2, 4]
    assert list(left.lines[1].get_ydata()) == [1.0, 1.0]
    assert list(Weft.figures([])) == []
    lines = [{"step": 1, "method": {"experts": [], "injection": [0.0] * 4}}]
    assert len(next(iter(dict(Weft.figures(lines)).values())).axes[0].lines) == 0
