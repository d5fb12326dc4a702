"""The sizes of every family: what timm publishes, how many numbers, and what a user may ask for."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from fakes import UNIT_RGB as BANDS

from rsseg_cli.backbones.clip import Clip
from rsseg_cli.backbones.dinov2 import Dinov2
from rsseg_cli.backbones.dinov3 import Dinov3
from rsseg_cli.backbones.eva02 import Eva02
from rsseg_cli.backbones.mae import Mae
from rsseg_cli.backbones.sam import Sam
from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import Backbone
from rsseg_cli.errors import RssegError
from rsseg_cli.find import find

FAMILIES = (Vit, Mae, Clip, Dinov2, Dinov3, Eva02, Sam)


@pytest.mark.parametrize(
    ("name", "positions", "count", "out_indices"),
    [
        ("dinov2_large", 1370, 304_198_656, (7, 11, 15, 23)),
        ("dinov2_large_reg", 1369, 304_201_728, (7, 11, 15, 23)),
        ("dinov3_large", None, 303_079_424, (7, 11, 15, 23)),
        ("dinov3_sat_large", None, 303_079_424, (7, 11, 15, 23)),
        ("eva02_large", 257, 304_239_552, (7, 11, 15, 23)),
        ("clip_large", 257, 304_150_528, (7, 11, 15, 23)),
        ("mae_large", 197, 304_149_504, (7, 11, 15, 23)),
        ("sam_huge", None, 636_107_520, (7, 15, 23, 31)),
        ("sam_large", None, 307_425_280, (5, 11, 17, 23)),
        ("sam_base", None, 88_883_456, (2, 5, 8, 11)),
    ],
)
def test_counts_at_patch_16(
    name: str, positions: int | None, count: int, out_indices: tuple[int, ...]
) -> None:
    """Counts of Rein's tables at 512 px; we keep the weights' positions, they those of 32 x 32."""
    family = find("backbones", name.partition("_")[0], Backbone)
    config: Any = family.Config(name=name, pretrained=False, patch=16)  # type: ignore[call-arg]
    with torch.device("meta"):
        backbone = family(config, BANDS)  # type: ignore[call-arg,arg-type]
    found = sum(parameter.numel() for parameter in backbone.parameters())
    if positions is not None:
        of_class = 0 if name.endswith("_reg") else 1
        found += (32 * 32 + of_class - positions) * backbone.dim
    assert found == count
    assert backbone.out_indices == out_indices
    assert all(parameter.is_meta for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "model", "licence"),
    [
        ("dinov2_base", "vit_base_patch14_dinov2.lvd142m", "apache-2.0"),
        ("dinov2_large", "vit_large_patch14_dinov2.lvd142m", "apache-2.0"),
        ("dinov2_base_reg", "vit_base_patch14_reg4_dinov2.lvd142m", "apache-2.0"),
        ("dinov2_large_reg", "vit_large_patch14_reg4_dinov2.lvd142m", "apache-2.0"),
        ("dinov3_base", "vit_base_patch16_dinov3.lvd1689m", "dinov3-license"),
        ("dinov3_large", "vit_large_patch16_dinov3.lvd1689m", "dinov3-license"),
        ("dinov3_sat_large", "vit_large_patch16_dinov3.sat493m", "dinov3-license"),
        ("eva02_base", "eva02_base_patch14_224.mim_in22k", "mit"),
        ("eva02_large", "eva02_large_patch14_224.mim_m38m", "mit"),
        ("clip_base", "vit_base_patch16_clip_quickgelu_224.openai", "apache-2.0"),
        ("clip_large", "vit_large_patch14_clip_quickgelu_224.openai", "apache-2.0"),
        ("mae_base", "vit_base_patch16_224.mae", "cc-by-nc-4.0"),
        ("mae_large", "vit_large_patch16_224.mae", "cc-by-nc-4.0"),
        ("sam_base", "samvit_base_patch16.sa1b", "apache-2.0"),
        ("sam_large", "samvit_large_patch16.sa1b", "apache-2.0"),
        ("sam_huge", "samvit_huge_patch16.sa1b", "apache-2.0"),
    ],
)
def test_names_stand_for_these_weights(name: str, model: str, licence: str) -> None:
    family, _, size = name.partition("_")
    kind = find("backbones", family, Backbone)
    assert kind.sizes[size].model == model
    page = f"https://huggingface.co/timm/{model.replace('_quickgelu', '')}"  # one file for both
    assert kind.licence(size) == (licence, page)


def test_every_published_size_is_known_to_timm() -> None:
    sizes = [size for kind in FAMILIES for size in kind.sizes.values()]
    assert len(sizes) >= 30
    for size in sizes:
        if not size.published:
            continue
        config = timm.get_pretrained_cfg(size.model)
        assert config is not None
        assert config.hf_hub_id, size.model
        assert f"patch{size.patch}" in size.model
    clip = [size.model for size in Clip.sizes.values()]
    assert all("quickgelu" in model for model in clip)
    satellite = timm.get_pretrained_cfg(Dinov3.sizes["sat_large"].model)
    assert satellite is not None
    assert satellite.mean == (0.43, 0.411, 0.296)


@pytest.mark.parametrize("out_indices", [(), (0, 0), (2, 1), (-1, 2), (0, 4)])
def test_taps_that_are_no_blocks(out_indices: tuple[int, ...]) -> None:
    with pytest.raises(RssegError, match=r"ascending block numbers of 0\.\.3"):
        Vit(Vit.Config(name="vit_tiny", out_indices=out_indices), BANDS)


def test_unknown_size_names_the_nearest() -> None:
    with pytest.raises(RssegError) as caught:
        Dinov2(Dinov2.Config(name="dinov2_larg"), BANDS)
    assert "dinov2_large" in caught.value.fix


def test_random_numbers_come_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = Vit(Vit.Config(name="vit_tiny"), BANDS)
    assert torch.equal(torch.rand(3), expected)
    again, other = (Vit(Vit.Config(name="vit_tiny", seed=seed), BANDS) for seed in (0, 1))
    assert torch.equal(first.model.blocks[3].mlp.fc2.weight, again.model.blocks[3].mlp.fc2.weight)
    assert not torch.equal(first.model.pos_embed, other.model.pos_embed)
    assert first.model.patch_embed.proj.weight.shape == (64, 3, 8, 8)
