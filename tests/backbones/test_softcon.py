"""SoftCon: its kernel on many bands, its scaling, the authors' file, and bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from test_dofa import go_offline
from torch import Tensor

from rsseg_cli.backbones._resize import PositionRule
from rsseg_cli.backbones.softcon import OPTICAL_NM, Softcon
from rsseg_cli.contract import Bands
from rsseg_cli.errors import RssegError
from rsseg_cli.methods.frozen import Frozen

DIM = 48
NARROW: dict[str, Any] = {"embed_dim": DIM, "num_heads": 4}


class Small(Softcon):
    """Narrow, else the same."""

    sizes = {  # noqa: RUF012 - overrides a ClassVar
        name: replace(size, changes=NARROW) for name, size in Softcon.sizes.items()
    }


GF2 = (830.0, 660.0, 555.0, 485.0)
RADAR = (None, None)


def bands(waves: tuple[float | None, ...], names: tuple[str, ...] = ()) -> Bands:
    count = len(waves)
    return Bands(
        names=names or tuple(f"b{number}" for number in range(count)),
        wavelengths_nm=waves,
        mean=(1000.0,) * count,
        std=(500.0,) * count,
        dtype="uint16",
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Path]:
    """A file of the small size as the authors save it: DINOv2's names, a mask token, 13 bands."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_small_patch14_dinov2", in_chans=13, img_size=224, num_classes=0, **NARROW
    )
    tensors = {name: torch.randn_like(t) * 0.05 for name, t in model.state_dict().items()}
    path = tmp_path_factory.mktemp("softcon") / "B13_vits14_softcon_enc.pth"
    torch.save(tensors | {"mask_token": torch.zeros(1, DIM)}, path)
    return tensors, path


def load(path: Path, waves: tuple[float | None, ...], **settings: Any) -> Softcon:
    return Small(Small.Config(name="softcon_small", weights=path, **settings), bands(waves))


@pytest.mark.parametrize("size", [(224, 224), (56, 98)])
def test_equals_timms_dinov2_on_scaled_sentinel2(
    published: tuple[dict[str, Tensor], Path], size: tuple[int, int]
) -> None:
    tensors, path = published
    backbone = load(path, tuple(OPTICAL_NM.values()))
    reference = timm.create_model(
        "vit_small_patch14_dinov2", in_chans=13, img_size=224, num_classes=0,
        dynamic_img_size=True, **NARROW,
    ).eval()  # fmt: skip
    reference.load_state_dict(tensors)
    image = torch.randn(1, 13, *size) * 2
    stored = image * 500 + 1000  # the authors scale stored values, we have standardised ones
    low, high = 1000 - 2 * 500, 1000 + 2 * 500
    with torch.no_grad():
        expected = reference.forward_intermediates(
            ((stored - low) / (high - low)).clamp(0, 1),
            indices=[3, 5, 7, 11], norm=False, intermediates_only=True,
        )  # fmt: skip
        found = backbone(image, Frozen(Frozen.Config(), backbone)).maps
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert backbone.weights_are_public
    assert backbone.out_indices == (3, 5, 7, 11)


def test_fewer_bands_take_the_nearest_slices(published: tuple[dict[str, Tensor], Path]) -> None:
    kernel = load(published[1], GF2).model.patch_embed.proj.weight
    whole = published[0]["patch_embed.proj.weight"]
    order = list(OPTICAL_NM)
    for place, nearest in enumerate(("B8", "B4", "B3", "B2")):
        torch.testing.assert_close(kernel[:, place], whole[:, order.index(nearest)] * 13 / 4)


def test_two_bands_may_share_a_slice_and_order_does_not_matter(
    published: tuple[dict[str, Tensor], Path],
) -> None:
    image, order = torch.randn(1, 4, 28, 28), [2, 0, 3, 1]
    plain = load(published[1], GF2)
    other = load(published[1], tuple(GF2[band] for band in order))
    torch.testing.assert_close(other.embed(image[:, order])[0], plain.embed(image)[0])
    assert load(published[1], (660.0, 670.0)).slices == [3, 3]


def test_radar_goes_by_name(tmp_path: Path) -> None:
    with torch.device("meta"):
        backbone = Softcon(
            Softcon.Config(name="softcon_sar_small", pretrained=False), bands(RADAR, ("VH", "vv"))
        )
    assert backbone.slices == [1, 0]
    with pytest.raises(RssegError, match="vv and vh, not hh"):
        Softcon(
            Softcon.Config(name="softcon_sar_small", pretrained=False), bands(RADAR, ("hh", "vv"))
        )


def test_parameters_at_base() -> None:
    with torch.device("meta"):
        backbone = Softcon(
            Softcon.Config(name="softcon_base", pretrained=False), bands(tuple(OPTICAL_NM.values()))
        )
    assert sum(p.numel() for p in backbone.parameters()) == 87_230_208
    assert backbone.model.pos_embed.shape == (1, 257, 768)


def test_authors_resize_as_dinov2_does(published: tuple[dict[str, Tensor], Path]) -> None:
    authors = load(published[1], GF2, resize="authors")
    assert authors.positions == PositionRule(antialias=False, offset=0.1)
    image = torch.randn(1, 4, 56, 98)
    assert not torch.equal(authors.embed(image)[0], load(published[1], GF2).embed(image)[0])


@pytest.mark.parametrize(
    ("settings", "waves", "message"),
    [
        ({}, (665.0, None), "b1 has none"),
        ({"stats": "native"}, GF2, "no native ones"),
    ],
)
def test_bad_input(settings: dict[str, Any], waves: tuple[float | None, ...], message: str) -> None:
    with pytest.raises(RssegError, match=message):
        Softcon(Softcon.Config(name="softcon_small", pretrained=False, **settings), bands(waves))


def test_the_file_of_another_size_or_sensor(published: tuple[dict[str, Tensor], Path]) -> None:
    with pytest.raises(RssegError, match="not for softcon_base"), torch.device("meta"):
        Softcon(Softcon.Config(name="softcon_base", weights=published[1]), bands(GF2))
    radar = Softcon.Config(name="softcon_sar_small", weights=published[1])
    with pytest.raises(RssegError, match="48x13x14x14 instead of 48x2x14x14"):
        Small(radar, bands(RADAR, ("vv", "vh")))


def test_no_network_names_the_file_and_its_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    go_offline(monkeypatch)
    with pytest.raises(RssegError, match=r"softcon/B13_vits14_softcon_enc\.pth") as caught:
        Softcon(Softcon.Config(name="softcon_small"), bands(GF2))
    assert "CC-BY-4.0" in caught.value.where
    assert "--weights FILE" in caught.value.fix
