"""SET against its equations over numpy's transform, its exact inverse, and its start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fakes import at_vit_large, tiny_vit
from pydantic import ValidationError
from torch import Tensor

from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import Grid, QueryShape, State
from rsseg_cli.methods.set import Set, join, split


def tiny(**settings: Any) -> tuple[Vit, Set]:
    torch.manual_seed(0)
    backbone = tiny_vit().requires_grad_(False)
    config = Set.Config.model_validate({"tokens": 6, "rank": 4} | settings)
    return backbone, Set(config, backbone, QueryShape(6, 12))


def look(x: Tensor, asking: Tensor, own: Tensor, branch: Any, *, normalised: bool) -> Tensor:
    """One branch, with token 0 left out after the softmax."""
    logits = asking @ own.T
    if normalised:
        mean, variance = logits.mean(-1, keepdim=True), logits.var(-1, False, keepdim=True)
        logits = (logits - mean) / (variance + 1e-5).sqrt()
    else:
        logits = logits / 8
    return branch.mlp(x + logits.softmax(-1)[..., 1:] @ branch.value(own[1:]))


def own_tokens(branch: Any, index: int) -> Tensor:
    found: Tensor = branch.block(index).mean()
    return found


def randomise(method: Set) -> None:
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, std=0.4)


@pytest.mark.parametrize("amplitude_tokens", ["lowrank", "full"])
def test_a_block_equals_the_equations(amplitude_tokens: str) -> None:
    backbone, method = tiny(amplitude_tokens=amplitude_tokens)
    randomise(method)
    tokens = torch.randn(2, backbone.num_prefix_tokens + 15, 64)
    f = tokens[:, backbone.num_prefix_tokens :].reshape(2, 3, 5, 64)
    spectrum = np.fft.fft2(f.numpy(), axes=(1, 2), norm="ortho")[:, :, :3].reshape(2, 9, 64)
    a, p = (torch.from_numpy(part).float() for part in (np.abs(spectrum), np.angle(spectrum)))
    amplitude = look(
        a, a.log1p(), own_tokens(method.amplitude, 1), method.amplitude, normalised=True
    )
    phase = look(p, p, own_tokens(method.phase, 1), method.phase, normalised=False)
    changed = (amplitude * torch.exp(1j * phase)).detach().numpy().reshape(2, 3, 3, 64)
    back = np.fft.irfft2(changed, s=(3, 5), axes=(1, 2), norm="ortho").reshape(2, 15, 64)
    expected = f.flatten(1, 2) + method.scale * torch.from_numpy(back).float()
    out = method.after_block(1, tokens, State(Grid(3, 5)))
    assert torch.equal(
        out[:, : backbone.num_prefix_tokens], tokens[:, : backbone.num_prefix_tokens]
    )
    assert torch.allclose(out[:, backbone.num_prefix_tokens :], expected, atol=1e-3)


@pytest.mark.parametrize("grid", [Grid(4, 6), Grid(3, 5), Grid(5, 1), Grid(3, 4, groups=3)])
def test_split_and_join(grid: Grid) -> None:
    patches = torch.randn(2, grid.tokens, 8)
    amplitude, phase = split(patches, grid)
    assert amplitude.shape == (2 * grid.groups, grid.h * (grid.w // 2 + 1), 8)
    assert torch.allclose(join(amplitude, phase, grid), patches, atol=1e-5)
    assert torch.allclose(join(-amplitude, phase, grid), -patches, atol=1e-5)


def test_silence_has_finite_gradients() -> None:
    patches = torch.zeros(1, 12, 3)
    patches[..., 1] = 2.0  # a constant: all but its mean is silent
    patches[..., 2] = torch.randn(12)
    patches.requires_grad_()
    amplitude, phase = split(patches, Grid(3, 4))
    assert torch.allclose(join(amplitude, phase, Grid(3, 4)), patches, atol=1e-5)
    torch.autograd.backward((amplitude * 0.3 + phase).sum())
    assert patches.grad is not None
    assert torch.isfinite(patches.grad).all()


@pytest.mark.parametrize(("kind", "width"), [("lowrank", 16), ("full", 64)])
def test_laws_of_the_start(kind: str, width: int) -> None:
    method = Set(Set.Config(tokens=40, rank=4, amplitude_tokens=kind), tiny_vit())  # type: ignore[arg-type]
    bound = (6 / (3 * 8**2 + width)) ** 0.5
    amplitudes = torch.cat([p.flatten() for p in method.amplitude.no_weight_decay()])
    assert amplitudes.abs().max() <= bound
    assert amplitudes.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert len(list(method.no_weight_decay())) == (16 if kind == "lowrank" else 12)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 5_520_897),
        ({"amplitude_tokens": "full"}, 7_546_881),
        ({"queries": None}, 5_520_897 - 459_264),
    ],
)
def test_counts_at_vit_large(settings: dict[str, Any], count: int) -> None:
    backbone, method = at_vit_large(Set, **settings)
    assert sum(p.numel() for _, p in method.trainable_parameters(backbone)) == count


def test_bad_settings() -> None:
    for settings in ({"tokens": 1}, {"rank": 0}, {"amplitude_tokens": "none"}):
        with pytest.raises(ValidationError):
            Set.Config.model_validate(settings)
