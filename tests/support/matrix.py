"""Tiny models of every method on every backbone, held to the core of the contract."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from fakes import FakeStep
from test_contract import BANDS, HEADS, TINY, batch, head_settings
from torch import Tensor

from rsseg_cli.contract import Backbone, Head, Method
from rsseg_cli.errors import RssegError
from rsseg_cli.find import find, names
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import optimizer

FAMILIES = names("backbones")
PATCH = 8
NARROW = {"embed_dim": 64, "depth": 4, "num_heads": 2}
MORE: dict[str, dict[str, Any]] = {"sam": {"window_size": 3, "global_attn_indexes": (3,)}}
"""Further changes that make a family's model small."""
ONE_OF: dict[str, str] = {"galileo": "nano"}
"""Sizes that stand for their family where it is not the base size, or the large one."""
FEW: dict[str, dict[str, Any]] = {
    "childtune": {"samples": 2, "batch": 1, "warmup": 0},
    "crossearth_gate": {"samples": 2},
    "fish": {"samples": 2, "warmup": 0},
    "fishertune": {"estimation": 2, "statistics": 2, "gauge": 1, "samples": 1, "warmup": 0},
    "weft": {"channels": 8, "kernels": [1, 3], "active": 1, "points": 1},
}
"""Settings with which a method takes little time, and selects from the first step on."""
WIDTHS = (65.0, 35.0, 30.0, 115.0)


@cache
def _backbone(family: str) -> Backbone:
    kind: Any = find("backbones", family, Backbone)
    size = ONE_OF.get(family) or next(one for one in ("base", "large") if one in kind.sizes)
    settings: dict[str, Any] = {"name": f"{family}_{size}", "pretrained": False, "patch": PATCH}
    if "adapt" in kind.Config.model_fields:  # timm's
        changes = {**kind.sizes[size].changes, **NARROW, **MORE.get(family, {})}
        sizes = {size: replace(kind.sizes[size], changes=changes)}
        kind = type(kind.__name__, (kind,), {"sizes": sizes})
        settings["out_indices"] = (0, 1, 2, 3)
    if family == "copernicus_fm":
        settings["bandwidths_nm"] = WIDTHS
    made: Backbone = kind(kind.Config(**settings), BANDS)
    return made


def backbone(family: str) -> Backbone:
    """Return a new tiny model of a family with seeded random numbers."""
    return copy.deepcopy(_backbone(family))


def build(method: str, family: str, seed: int = 0) -> Segmenter:
    """Build a tiny model of a pair.

    Raises:
        RssegError: The method refuses the backbone.
    """
    torch.manual_seed(seed)
    tiny = backbone(family)
    kind: Any = find("methods", method, Method)
    settings = TINY.get(method, {}) | FEW.get(method, {})
    built = kind.build(kind.Config.model_validate(settings), tiny)
    scorer = find("heads", "linear", Head)
    config = scorer.Config.model_validate(HEADS["linear"] | head_settings(method, "linear"))
    head = scorer(config, dim=tiny.dim, maps=built.num_feature_maps(tiny), classes=3)
    return Segmenter(tiny, built, head, BANDS)


def check(method: str, family: str) -> None:
    """Check that a pair keeps the core of the contract."""
    model = build(method, family)
    before = [tensor.clone() for tensor in model.frozen_parameters()]
    tuned = {name: tensor.detach().clone() for name, tensor in model.trainable_parameters()}
    loss = _step(model)
    assert torch.isfinite(loss), "the loss is not a number"
    assert any(
        not torch.equal(tensor, tuned[name]) for name, tensor in model.trainable_parameters()
    )
    for old, new in zip(before, model.frozen_parameters(), strict=True):
        assert torch.equal(old, new), "a frozen tensor has changed"
    image, _ = batch(32, 40)
    scores = model.eval().probabilities(image)
    assert scores.shape == (2, 3, 32, 40)
    assert torch.allclose(scores.sum(1), torch.ones(2, 32, 40), atol=1e-4)
    other = build(method, family, seed=1)
    other.load_adapter_state(model.adapter_state())
    assert torch.equal(other.eval().probabilities(image), scores), "the packed state restores less"


def _step(model: Segmenter) -> Tensor:
    """Run one update with the hooks of the method; return the loss before it."""
    model.train()
    adam, step = optimizer.build(optimizer.Optimization(lr=1e-2), model), FakeStep(model)
    model.method.before_step(step)
    loss = torch.stack(list(model(*batch(32, 40)).values())).sum()
    torch.autograd.backward(loss)
    model.method.before_update(step)
    adam.step()
    model.method.after_step(step)
    return loss.detach()


def refusal(method: str, family: str) -> str:
    """Try a pair; return why it is refused, or nothing if it works."""
    try:
        build(method, family)
    except RssegError as error:
        if not error.fix:
            raise TypeError(f"{method} on {family}: no way out is named") from error
        return error.what
    check(method, family)
    return ""
