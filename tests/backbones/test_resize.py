"""Kernels and positions on other sizes: each rule against its sums written out, place by place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_backbones import BANDS, CASES, make, picture
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from rsseg_cli.backbones._resize import PLAIN, TIMM, PositionRule, resize_kernel, resize_positions
from rsseg_cli.backbones._timm import TimmBackbone
from rsseg_cli.backbones.dinov2 import Dinov2
from rsseg_cli.errors import RssegError

SHARPNESS = -0.75
"""The free number of cubic convolution, as torch has it."""


def weight(distance: float) -> float:
    """Cubic convolution (Keys 1981)."""
    x, a = abs(distance), SHARPNESS
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def stretch(old: int, new: int, scale: float) -> Tensor:
    """The matrix (new, old) that resizes a line: edges aligned, border repeated, no smoothing."""
    matrix = torch.zeros(new, old)
    for row in range(new):
        place = (row + 0.5) / scale - 0.5
        for near in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[row, min(max(near, 0), old - 1)] += weight(place - near)
    return matrix


def table(rows: int, columns: int) -> Tensor:
    return torch.randn(1, rows * columns, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("new", [(4, 4), (8, 5), (3, 11), (6, 6)])
def test_positions_without_smoothing(offset: float, new: tuple[int, int]) -> None:
    down, across = (
        stretch(6, side, (side + offset) / 6) if side != 6 else torch.eye(6) for side in new
    )
    grid = table(6, 6).reshape(6, 6, 5)
    expected = torch.einsum("hr,wc,rcd->hwd", down, across, grid).reshape(1, -1, 5)
    found = resize_positions(table(6, 6), (6, 6), new, PositionRule(antialias=False, offset=offset))
    assert found.shape == (1, new[0] * new[1], 5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("new", [(4, 4), (8, 5), (3, 11), (6, 6)])
def test_positions_as_timm(new: tuple[int, int]) -> None:
    found = resize_positions(table(6, 6), (6, 6), new, TIMM)
    assert torch.equal(found, resample_abs_pos_embed(table(6, 6), list(new), [6, 6], 0))


def test_the_rules_differ_by_what_the_sheet_of_facts_says() -> None:
    """37 -> 32 places of random positions differ by 23 %."""
    places = torch.randn(1, 37 * 37, 64, generator=torch.Generator().manual_seed(0))
    smooth, bare = (resize_positions(places, (37, 37), (32, 32), rule) for rule in (TIMM, PLAIN))
    assert ((smooth - bare).norm() / bare.norm()).item() == pytest.approx(0.23, abs=0.005)


def test_kernels_keep_their_answer_to_an_even_patch_only_by_the_pseudo_inverse() -> None:
    kernel = torch.ones(2, 3, 14, 14)
    plain, fitted = (resize_kernel(kernel, 16, rule).sum() for rule in ("plain", "timm"))
    assert plain / kernel.sum() == pytest.approx((16 / 14) ** 2, rel=1e-5)  # 1.306
    assert fitted / kernel.sum() == pytest.approx(1.0, rel=1e-5)
    random = torch.randn(2, 3, 14, 14)
    matrix = stretch(14, 16, 16 / 14)
    expected = torch.einsum("pr,qc,dirc->dipq", matrix, matrix, random)
    torch.testing.assert_close(resize_kernel(random, 16, "plain"), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(resize_kernel(random, 16, "timm"), resample_patch_embed(random, [16, 16]))
    assert torch.equal(resize_kernel(random, 16, "authors"), resize_kernel(random, 16, "timm"))
    for rule in ("plain", "timm", "authors"):
        assert torch.equal(resize_kernel(random, 14, rule), random)


# --- in the families ------------------------------------------------------------------------------

PLACED = [case for case in CASES if not case.startswith("dinov3")]


@pytest.mark.parametrize("case", PLACED)
def test_every_family_places_its_patches_by_the_rule(case: str) -> None:
    """`plain` changes tokens by the difference of the resized positions and by nothing else."""
    timm, plain = make(case), make(case, resize="plain")
    grid, size = (3, 5), slice(timm.num_prefix_tokens, None)
    tokens = [one.embed(picture(one, *grid))[0][:, size] for one in (timm, plain)]
    if case == "clip":  # a norm follows
        assert not torch.allclose(*tokens)
        return
    places = timm.model.pos_embed
    if case == "sam":
        old, rows = (int(places.shape[1]), int(places.shape[2])), places.flatten(1, 2)
    else:
        old = timm.model.patch_embed.grid_size
        rows = places[:, places.shape[1] - old[0] * old[1] :]
    smooth, bare = (resize_positions(rows, old, grid, rule) for rule in (TIMM, PLAIN))
    expected = (bare - smooth).expand(2, -1, -1)
    torch.testing.assert_close(tokens[1] - tokens[0], expected, rtol=1e-4, atol=1e-4)
    assert timm.origin["resize"] == "timm"
    assert plain.origin["resize"] == "plain"


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        ("dinov2", PositionRule(antialias=False, offset=0.1)),
        ("dinov2_reg", TIMM),
        ("mae", PLAIN),
        ("eva02", PLAIN),
    ],
)
def test_authors(case: str, rule: PositionRule) -> None:
    assert make(case, resize="authors").positions == rule
    assert make(case).positions == TIMM


@pytest.mark.parametrize("case", ["clip", "sam", "vit", "dinov3", "dofa"])
def test_authors_who_resize_nothing(case: str) -> None:
    with pytest.raises(RssegError, match="resize no positions") as caught:
        make(case, resize="authors")
    assert "timm" in caught.value.fix


@pytest.mark.parametrize("rule", ["timm", "plain"])
def test_a_file_s_kernel_is_resized_by_the_rule(rule: str, tmp_path: Path) -> None:
    tensors = {
        name: torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3))
        for name, tensor in make("dinov2").model.state_dict().items()
    }
    tensors["patch_embed.proj.weight"] = torch.randn(32, 3, 14, 14)
    save_file(tensors, tmp_path / "weights.safetensors")
    settings: dict[str, Any] = {
        "patch": 16,
        "resize": rule,
        "weights": tmp_path / "weights.safetensors",
    }
    kind: type[TimmBackbone] = type("Small", (Dinov2,), {"sizes": {"test": CASES["dinov2"][1]}})
    rgb = BANDS.model_copy(
        update={
            "names": BANDS.names[1:], "wavelengths_nm": BANDS.wavelengths_nm[1:],
            "mean": (0.0,) * 3, "std": (1.0,) * 3,
        }
    )  # fmt: skip
    backbone = kind(Dinov2.Config(name="small_test", **settings), rgb)
    kernel = backbone.model.patch_embed.proj.weight.detach()
    expected = resize_kernel(tensors["patch_embed.proj.weight"], 16, rule)  # type: ignore[arg-type]
    torch.testing.assert_close(kernel, expected)
