"""Every family walks its blocks as timm does, on any grid, with any bands, with listeners."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rsseg_cli.backbones._timm import ModelSize, TimmBackbone
from rsseg_cli.backbones.clip import Clip
from rsseg_cli.backbones.dinov2 import Dinov2
from rsseg_cli.backbones.dinov3 import Dinov3
from rsseg_cli.backbones.dofa import PLAIN, Dofa
from rsseg_cli.backbones.eva02 import Eva02
from rsseg_cli.backbones.mae import Mae
from rsseg_cli.backbones.sam import Sam
from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import Backbone, Bands, Grid, Method, Role

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
WINDOWS = {**SMALL, "window_size": 3, "global_attn_indexes": (1, 2)}
ROLES: tuple[Role, ...] = ("q", "k", "v", "fc1", "fc2")

CASES: dict[str, tuple[type[TimmBackbone], ModelSize, int]] = {
    "vit": (Vit, ModelSize("vit_small_patch16_224.augreg_in21k", 16, SMALL), 1),
    "mae": (Mae, ModelSize("vit_base_patch16_224.mae", 16, SMALL), 1),
    "clip": (Clip, ModelSize("vit_base_patch16_clip_quickgelu_224.openai", 16, SMALL), 1),
    "dinov2": (Dinov2, ModelSize("vit_small_patch14_dinov2.lvd142m", 14, SMALL), 1),
    "dinov2_reg": (Dinov2, ModelSize("vit_small_patch14_reg4_dinov2.lvd142m", 14, SMALL), 5),
    "dinov3": (Dinov3, ModelSize("vit_small_patch16_dinov3.lvd1689m", 16, SMALL), 5),
    "dinov3_gated": (Dinov3, ModelSize("vit_small_plus_patch16_dinov3.lvd1689m", 16, SMALL), 5),
    "dinov3_biased": (Dinov3, ModelSize("vit_small_patch16_dinov3_qkvb.lvd1689m", 16, SMALL), 5),
    "eva02": (Eva02, ModelSize("eva02_base_patch14_224.mim_in22k", 14, SMALL), 1),
    "eva02_fused": (Eva02, ModelSize("eva02_small_patch14_224.mim_in22k", 14, SMALL), 1),
    "dofa": (Dofa, ModelSize("vit_base_patch16_224.mae", 16, {**SMALL, **PLAIN}), 1),
    "sam": (Sam, ModelSize("samvit_base_patch16.sa1b", 16, WINDOWS), 0),
}
EVERY = pytest.mark.parametrize("case", CASES)
PROMPTED = pytest.mark.parametrize("case", [case for case in CASES if case != "sam"])

BANDS = Bands(
    names=("nir", "red", "green", "blue"),
    wavelengths_nm=(842.0, 665.0, 560.0, 490.0),
    mean=(0.0,) * 4,
    std=(1.0,) * 4,
    dtype="uint16",
)


class Untouched(Method[Any]):
    """Does nothing at all."""


def make(case: str, **settings: Any) -> TimmBackbone:
    """A small network of a family, all its numbers drawn at random so that every one matters."""
    family, size, _ = CASES[case]
    kind = type("Small", (family,), {"sizes": {"test": size}})
    backbone: TimmBackbone = kind(
        family.Config(name="small_test", pretrained=False, **settings), BANDS
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return backbone


def picture(backbone: Backbone, rows: int, columns: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    shape = batch, 4, rows * backbone.patch, columns * backbone.patch
    return torch.randn(shape, generator=generator)


def maps(backbone: Backbone, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return backbone(image, Untouched(Method.Config(), backbone)).maps


# --- equality with timm ---------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (5, 2)])
def test_our_walk_equals_timms_intermediates(case: str, grid: tuple[int, int]) -> None:
    backbone = make(case, out_indices=(0, 1, 2))
    image = picture(backbone, *grid)
    with torch.no_grad():
        expected = backbone.model.forward_intermediates(
            image, indices=[0, 1, 2], norm=False, output_fmt="NCHW", intermediates_only=True
        )
    found = maps(backbone, image)
    assert [map_.shape for map_ in found] == [(2, 32, *grid)] * 3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], found[2], atol=0.1)


@EVERY
def test_facts_that_methods_rely_on(case: str) -> None:
    backbone = make(case)
    tokens, grid = backbone.embed(picture(backbone, 2, 3))
    assert (backbone.dim, backbone.depth, backbone.num_prefix_tokens) == (32, 3, CASES[case][2])
    assert tokens.shape == (2, backbone.num_prefix_tokens + 6, 32)
    assert grid == Grid(2, 3)
    assert backbone.out_indices == ((1, 2) if case == "sam" else (0, 1, 2))
    assert backbone.takes_prompts == (case != "sam")
    assert not any(module.training for module in backbone.train().modules())


@pytest.mark.parametrize("patch", [8, 20])
@EVERY
def test_another_patch_size(case: str, patch: int) -> None:
    backbone = make(case, patch=patch)
    assert maps(backbone, picture(backbone, 3, 4))[0].shape == (2, 32, 3, 4)
    if getattr(backbone.model, "pos_embed", None) is not None:
        native = make(case)
        assert backbone.model.pos_embed.shape == native.model.pos_embed.shape


@EVERY
def test_half_precision_stays_near(case: str) -> None:
    backbone = make(case)
    image = picture(backbone, 3, 4)
    full = maps(backbone, image)
    with torch.autocast("cpu", torch.bfloat16):
        half = maps(backbone, image)
    for ours, exact in zip(half, full, strict=True):
        assert (ours.float() - exact).norm() < 0.05 * exact.norm()


def test_recomputing_gives_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        backbone = make("dinov3")
        backbone.recompute = recompute
        out = backbone(picture(backbone, 2, 3), Untouched(Method.Config(), backbone)).maps[-1]
        out.square().mean().backward()
        gradients.append(backbone.model.blocks[0].mlp.fc1.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_rotation_met_in_inference_mode_can_be_trained_with() -> None:
    backbone = make("dinov3")
    with torch.inference_mode():
        backbone(picture(backbone, 2, 3), Untouched(Method.Config(), backbone))
    backbone(picture(backbone, 2, 3), Untouched(Method.Config(), backbone)).maps[
        -1
    ].sum().backward()
    assert backbone.model.blocks[0].attn.qkv.weight.grad is not None


# --- prompts --------------------------------------------------------------------------------------


@PROMPTED
def test_extra_tokens_have_no_place(case: str) -> None:
    """Prompts between prefix and patches act as if they were more prefix, in timm's own block."""
    backbone = make(case)
    tokens, grid = backbone.embed(picture(backbone, 2, 3))
    prompts = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(3))
    joined = torch.cat(
        [tokens[:, : backbone.num_prefix_tokens], prompts, tokens[:, backbone.num_prefix_tokens :]],
        1,
    )
    with torch.no_grad():
        found = backbone.run(1, joined, grid, extra=4)
        block = backbone.model.blocks[1]
        if case.startswith(("dinov3", "eva")):
            block.attn.num_prefix_tokens += 4
            expected = block(joined, rope=backbone.model.rope.get_embed(shape=(2, 3)))
        else:
            expected = block(joined)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert backbone.to_map(found, grid, extra=4).shape == (2, 32, 2, 3)
    torch.testing.assert_close(
        backbone.to_map(found, grid, extra=4),
        backbone.to_map(
            torch.cat([found[:, : backbone.num_prefix_tokens], found[:, -6:]], 1), grid
        ),
    )


@PROMPTED
def test_extra_tokens_that_nobody_looks_at_change_nothing(case: str) -> None:
    backbone = make(case)
    tokens, grid = backbone.embed(picture(backbone, 2, 3))
    with torch.no_grad():
        for block in backbone.model.blocks:  # values of 0: prompts bring nothing but their weight
            for projection in backbone.projections(0, "v"):
                projection.module.weight[projection.rows] = 0
                if projection.module.bias is not None:
                    projection.module.bias[projection.rows] = 0
            if getattr(block.attn, "v_bias", None) is not None:
                block.attn.v_bias.zero_()
        prompts = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(3))
        joined = torch.cat(
            [
                tokens[:, : backbone.num_prefix_tokens],
                prompts,
                tokens[:, backbone.num_prefix_tokens :],
            ],
            1,
        )
        with_prompts = backbone.run(0, joined, grid, extra=4)
        without = backbone.run(0, tokens, grid)
    torch.testing.assert_close(
        backbone.to_map(with_prompts, grid, 4), backbone.to_map(without, grid)
    )


def test_sam_refuses_prompts() -> None:
    backbone = make("sam")
    tokens, grid = backbone.embed(picture(backbone, 2, 3))
    with pytest.raises(ValueError, match="takes_prompts"):
        backbone.run(0, tokens, grid, extra=1)


# --- listeners ------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("role", ROLES)
def test_listening_equals_changing_the_weight(case: str, role: Role) -> None:
    """LoRA's sum at a projection is the same as a sum in the rows of its weight."""
    listened, changed = make(case), make(case)
    image = picture(listened, 3, 2)
    generator = torch.Generator().manual_seed(4)
    count = len(listened.projections(1, role))
    assert count == (2 if role == "fc1" and case in ("dinov3_gated", "eva02") else 1)
    for ours, theirs in zip(
        listened.projections(1, role), changed.projections(1, role), strict=True
    ):
        rows = len(range(*ours.rows.indices(ours.module.out_features)))
        delta = torch.randn(rows, ours.module.in_features, generator=generator) * 0.3
        ours.listen(partial(torch.nn.functional.linear, weight=delta))
        with torch.no_grad():
            theirs.module.weight[theirs.rows] += delta
    found, expected = maps(listened, image), maps(changed, image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[-1], maps(make(case), image)[-1], atol=1e-3)


def test_thirds_of_a_fused_matrix_and_parts_of_a_split_one() -> None:
    fused = make("dinov3")
    qkv = fused.model.blocks[2].attn.qkv
    for place, role in enumerate(ROLES[:3]):
        (projection,) = fused.projections(2, role)
        assert projection.module is qkv
        assert projection.rows == slice(32 * place, 32 * (place + 1))
    split = make("eva02")
    attention = split.model.blocks[2].attn
    for role, module in zip(
        ROLES[:3], (attention.q_proj, attention.k_proj, attention.v_proj), strict=True
    ):
        assert [p.module for p in split.projections(2, role)] == [module]


@EVERY
def test_beside_the_mlp(case: str) -> None:
    """A parallel branch reads the stream between attention and MLP; it is added unscaled."""
    backbone = make(case)
    tokens, grid = backbone.embed(picture(backbone, 3, 2))
    with torch.no_grad():
        before = backbone.run(1, tokens, grid)
        for projection in backbone.projections(1, "fc2"):
            projection.module.weight.zero_()
            projection.module.bias.zero_()
        between = backbone.run(1, tokens, grid)
    fresh = make(case)
    fresh.listen_beside_mlp(1, partial(torch.mul, 0.5))
    with torch.no_grad():
        after = fresh.run(1, tokens, grid)
        untouched = fresh.run(0, tokens, grid)
    torch.testing.assert_close(after, before + 0.5 * between, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(untouched, make(case).run(0, tokens, grid))


@EVERY
def test_listeners_follow_a_copy(case: str) -> None:
    backbone = make(case)
    adapters = nn.ModuleList([nn.Linear(32, 32) for _ in range(2)])
    backbone.projections(0, "q")[0].listen(partial(_answer, adapters[0]))
    backbone.listen_beside_mlp(1, partial(_answer, adapters[1]))
    model = nn.ModuleList([backbone, adapters])
    image = picture(backbone, 2, 2)
    before = maps(backbone, image)[-1]
    copy = deepcopy(model)
    assert isinstance(copy[0], Backbone)
    torch.testing.assert_close(maps(copy[0], image)[-1], before)
    for adapter in range(2):
        with torch.no_grad():
            copy[1][adapter].weight.add_(1.0)  # type: ignore[index]
        changed = maps(copy[0], image)[-1]
        assert not torch.allclose(changed, before, atol=1e-3)
        before_copy, before = before, maps(backbone, image)[-1]
        assert torch.equal(before, before_copy)


def _answer(adapter: nn.Module, tokens: Tensor) -> Tensor:
    answer: Tensor = adapter(tokens)
    return answer
