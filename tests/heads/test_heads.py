"""Promises of both heads, their learning, and the maths of the linear head."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.classes import IGNORE
from rsseg_cli.contract import Features, Head
from rsseg_cli.find import find, names
from rsseg_cli.heads.linear import Linear
from rsseg_cli.heads.mask2former import Mask2Former

SMALL: dict[str, Any] = {
    "width": 64,
    "queries": 12,
    "layers": 4,
    "encoder_layers": 2,
    "ffn": 48,
    "encoder_ffn": 40,
    "points": 256,
}
DIM, CLASSES = 24, 5


def mask_head(*, maps: int = 4, classes: int = CLASSES, **settings: Any) -> Mask2Former:
    """A small one, with no two parameters alike."""
    torch.manual_seed(0)
    config = Mask2Former.Config(**SMALL | settings)
    head = Mask2Former(config, dim=DIM, maps=maps, classes=classes)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return head


def plain(batch: int = 2, h: int = 4, w: int = 6, maps: int = 4) -> list[Tensor]:
    return [torch.randn(batch, DIM, h, w) for _ in range(maps)]


def both() -> list[Head[Any]]:
    return [
        Linear(Linear.Config(), dim=DIM, maps=4, classes=CLASSES),
        Linear(Linear.Config(width=32, upsamplings=2), dim=DIM, maps=4, classes=CLASSES),
        mask_head(),
    ]


def test_private_files_are_no_heads() -> None:
    assert names("heads") == ("linear", "mask2former")
    assert find("heads", "linear", Head) is Linear
    assert find("heads", "mask2former", Head) is Mask2Former


# --- what both promise ---------------------------------------------------------------------------


@pytest.mark.parametrize("head", both(), ids=["probe", "decoder", "mask2former"])
@pytest.mark.parametrize("size", [(64, 96), (70, 91), (33, 32)])
def test_probabilities_sum_to_one_at_image_size(head: Head[Any], size: tuple[int, int]) -> None:
    head.eval()
    probabilities = head(Features(plain()), size).probabilities()
    assert probabilities.shape == (2, CLASSES, *size)
    assert probabilities.amin() >= 0
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, *size))


@pytest.mark.parametrize("head", both(), ids=["probe", "decoder", "mask2former"])
def test_autocast_keeps_probabilities_and_loss_in_float32(head: Head[Any]) -> None:
    labels = torch.randint(0, CLASSES, (2, 64, 96))
    with torch.autocast("cpu", torch.bfloat16):
        output = head.train()(Features([100 * cells for cells in plain()]), (64, 96))
        terms, probabilities = head.losses(output, labels), output.probabilities()
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert all(torch.isfinite(term) for term in terms.values())
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 64, 96))


@pytest.mark.parametrize("head", both(), ids=["probe", "decoder", "mask2former"])
def test_every_parameter_learns_and_images_do_not_mix(head: Head[Any]) -> None:
    maps = [cells.requires_grad_() for cells in plain()]
    labels = torch.randint(0, CLASSES, (2, 64, 96), dtype=torch.uint8)
    labels[1] = IGNORE
    output = head.train()(Features(maps), (64, 96))
    total = torch.stack(list(head.losses(output, labels).values())).sum()
    total.backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    for cells in maps:
        assert cells.grad is not None
        assert cells.grad[0].any()
        assert not cells.grad[1].any()  # the image without labels adds exactly nothing


@pytest.mark.parametrize("head", both(), ids=["probe", "decoder", "mask2former"])
def test_no_labelled_pixel_gives_zero(head: Head[Any]) -> None:
    output = head.train()(Features(plain()), (64, 96))
    for term in head.losses(output, torch.full((2, 64, 96), IGNORE)).values():
        assert term.detach() == 0


@pytest.mark.parametrize("head", both(), ids=["probe", "decoder", "mask2former"])
def test_copies_and_saved_states_give_the_same(head: Head[Any]) -> None:
    features, size = Features(plain()), (64, 96)
    expected = head.eval()(features, size).probabilities()
    copy = deepcopy(head)
    torch.testing.assert_close(copy(features, size).probabilities(), expected, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(1)
    torch.testing.assert_close(head(features, size).probabilities(), expected, rtol=0, atol=0)
    copy.load_state_dict(head.state_dict())
    torch.testing.assert_close(copy(features, size).probabilities(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["probe", "decoder", "mask2former"])
def test_learns_a_small_map(name: str) -> None:
    """Maps that show the class up to noise are scored right after some steps."""
    torch.manual_seed(0)
    heads = dict(zip(("probe", "decoder", "mask2former"), both(), strict=True))
    head = heads[name].train()
    cells = torch.randint(0, CLASSES, (2, 4, 4)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    labels = cells.repeat_interleave(8, 1).repeat_interleave(8, 2)  # (2, 64, 64)
    seen = 3 * F.one_hot(cells, DIM).permute(0, 3, 1, 2).float()
    maps = [seen + torch.randn_like(seen) for _ in range(4)]
    adam = torch.optim.AdamW(head.parameters(), lr=0.01 if name != "mask2former" else 2e-3)
    for _ in range(60):
        adam.zero_grad()
        terms = head.losses(head(Features(maps), (64, 64)), labels)
        torch.stack(list(terms.values())).sum().backward()
        adam.step()
    with torch.no_grad():
        found = head.eval()(Features(maps), (64, 64)).probabilities().argmax(1)
    assert (found == labels).float().mean() > 0.85


# --- linear --------------------------------------------------------------------------------------


def test_probe_is_linear_in_the_normalised_maps() -> None:
    head = Linear(Linear.Config(), dim=DIM, maps=2, classes=CLASSES)
    assert sum(p.numel() for p in head.parameters()) == 2 * (2 * DIM + DIM * CLASSES + CLASSES)
    maps = [torch.randn(2, DIM, 8, 8), 1000 * torch.randn(2, DIM, 4, 4)]
    logits = head(Features(maps), (64, 64)).logits
    fine, coarse = (
        F.conv2d(F.layer_norm(m.permute(0, 2, 3, 1), (DIM,)).permute(0, 3, 1, 2), c.weight, c.bias)
        for m, c in zip(maps, head.projections, strict=True)
        if isinstance(c, nn.Conv2d)
    )
    torch.testing.assert_close(logits, fine + F.interpolate(coarse, (8, 8), mode="bilinear"))


@pytest.mark.parametrize("width", [4, 40, 128])
@pytest.mark.parametrize("upsamplings", [0, 1, 2])
def test_decoder_refines_the_grid(width: int, upsamplings: int) -> None:
    config = Linear.Config(width=width, upsamplings=upsamplings)
    head = Linear(config, dim=DIM, maps=4, classes=CLASSES)
    logits = head(Features(plain()), (64, 96)).logits
    assert logits.shape == (2, CLASSES, 4 << upsamplings, 6 << upsamplings)


def test_doublings_without_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="upsamplings need a width"):
        Linear.Config(upsamplings=1)


def test_linear_loss_is_weighted_cross_entropy_of_labelled_pixels() -> None:
    torch.manual_seed(0)
    head = Linear(Linear.Config(), dim=DIM, maps=4, classes=CLASSES)
    head.class_weights.copy_(torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0]))
    output = head(Features(plain()), (64, 96))
    labels = torch.randint(0, CLASSES, (2, 64, 96), dtype=torch.uint8)
    labels[:, 20:50] = IGNORE
    resized = F.interpolate(output.logits, (64, 96), mode="bilinear")
    expected = F.cross_entropy(
        resized, labels.long(), head.class_weights, ignore_index=IGNORE, reduction="mean"
    )
    torch.testing.assert_close(head.losses(output, labels), {"cross_entropy": expected})
