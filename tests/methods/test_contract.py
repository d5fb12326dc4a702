"""The contract of methods: one suite that all of them pass."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from rsseg_cli import presets
from rsseg_cli.classes import IGNORE
from rsseg_cli.contract import Backbone, Bands, Head, Method
from rsseg_cli.errors import UnreadableError
from rsseg_cli.find import find, names
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import optimizer

# Settings that make a method small enough for the tiny backbone; all others keep their defaults.
TINY: dict[str, dict[str, Any]] = {
    "depthforge": {"depth": "random", "rank": 4},
    "fada": {"rank": 4},
    "lora": {"rank": 4},
    "rein": {"rank": 4},
    "set": {"rank": 4},
    "spectralmoe": {"depth": "random", "rank": 4, "experts": 3},
    "vpt": {"prompts": 5},
    "vqt": {"rank": 4},
    "weft": {"channels": 16, "kernels": [1, 3, 5], "active": 2},
}
BANDS = Bands(
    names=("blue", "green", "red", "nir"),
    wavelengths_nm=(490.0, 560.0, 665.0, 842.0),
    mean=(500.0, 700.0, 900.0, 2500.0),
    std=(100.0, 150.0, 200.0, 600.0),
    dtype="uint16",
    scale=1e-4,
    gsd_m=10.0,
)
HEADS: dict[str, dict[str, Any]] = {
    "linear": {"width": 16},
    "mask2former": {
        "width": 32, "queries": 8, "layers": 3, "encoder_layers": 1, "ffn": 64, "encoder_ffn": 64,
        "points": 256,
    },
}  # fmt: skip
"""Settings of small heads; each of the three layers attends to another level."""
METHODS = names("methods")


def make(method: str, head: str = "linear", seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    vit = find("backbones", "vit", Backbone)
    backbone = vit(vit.Config(name="vit_tiny"), BANDS)  # type: ignore[call-arg]
    kind, scorer = find("methods", method, Method), find("heads", head, Head)
    config = scorer.Config.model_validate(HEADS[head] | head_settings(method, head))
    settings = kind.Config.model_validate(TINY.get(method, {}))
    built = kind.build(settings, backbone, config.queries_of_method)
    made = scorer(config, dim=backbone.dim, maps=built.num_feature_maps(backbone), classes=3)
    return Segmenter(backbone, built, made, BANDS)


def head_settings(method: str, head: str) -> dict[str, Any]:
    """Link the head to the queries of a method if the method's preset does."""
    preset = presets.read(presets.find("methods", method)).values["head"]
    linked = preset["name"] == head and preset.get("query_position") == "method"
    return {"query_position": "method"} if linked else {}


def batch(height: int = 48, width: int = 64, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 4, height, width, generator=generator)
    label = (image[:, 0] > 0).long() + (image[:, 1] > 0.5).long()
    label[:, :5] = IGNORE
    return image, label


def steps(model: Segmenter, count: int = 3) -> list[float]:
    """Run plain updates, without the hooks around a step."""
    model.train()
    settings = optimizer.Optimization(lr=1e-2, weight_decay=0.1)
    adam, losses = optimizer.build(settings, model), []
    for index in range(count):
        torch.manual_seed(index)
        loss = torch.stack(list(model(*batch()).values())).sum()
        torch.autograd.backward(loss)
        adam.step()
        adam.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def perturb(model: Segmenter) -> None:
    with torch.no_grad():
        for _, parameter in model.trainable_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_any_image_size(method: str) -> None:
    model = make(method).eval()
    for height, width in ((64, 64), (40, 72), (37, 51)):
        scores = model.probabilities(torch.randn(2, 4, height, width))
        assert scores.shape == (2, 3, height, width)
        assert torch.allclose(scores.sum(1), torch.ones(2, height, width), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_loss_falls_and_the_rest_stays(method: str) -> None:
    model = make(method)
    before = [tensor.clone() for tensor in model.frozen_parameters()]
    assert all(not tensor.requires_grad for tensor in model.frozen_parameters())
    losses = steps(model, 8)
    assert losses[-1] < losses[0]
    for old, new in zip(before, model.frozen_parameters(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("method", METHODS)
def test_names_are_unique_and_belong_to_the_model(method: str) -> None:
    model = make(method)
    tuned = list(model.trainable_parameters())
    assert len({name for name, _ in tuned}) == len(tuned) == len({id(p) for _, p in tuned})
    inside = dict(model.named_parameters())
    for name, parameter in tuned:
        assert inside[name] is parameter


@pytest.mark.parametrize("method", METHODS)
def test_pack_and_unpack_into_a_new_model(method: str) -> None:
    model = make(method)
    steps(model)
    perturb(model)
    packed = {name: tensor.clone() for name, tensor in model.adapter_state().items()}
    image, _ = batch()
    other = make(method, seed=5)
    other.load_adapter_state(packed)
    other.load_adapter_state(packed)  # absolute values: twice changes nothing
    assert torch.equal(model.eval().probabilities(image), other.eval().probabilities(image))


@pytest.mark.parametrize("method", METHODS)
def test_incomplete_and_foreign_tensors_are_refused(method: str) -> None:
    packed = make(method).adapter_state()
    model = make(method, seed=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in packed.items():
        rest = {other: value for other, value in packed.items() if other != name}
        with pytest.raises(UnreadableError, match=re.escape(f"1 missing ({name})")):
            model.load_adapter_state(rest)
        with pytest.raises(UnreadableError, match="of another shape"):
            model.load_adapter_state(packed | {name: tensor[None]})
    for foreign in ("zz", "method.zz", "backbone.zz", "rest.zz", "head.zz"):
        with pytest.raises(UnreadableError, match=re.escape(f"1 unexpected ({foreign})")):
            model.load_adapter_state(packed | {foreign: torch.zeros(1)})
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) or tensor.isnan().any()


@pytest.mark.parametrize("method", METHODS)
def test_a_teacher_shares_only_what_is_frozen(method: str) -> None:
    student = make(method).eval()
    perturb(student)
    teacher = copy.deepcopy(
        student, memo={id(tensor): tensor for tensor in student.frozen_parameters()}
    )
    image, _ = batch()
    before = student.probabilities(image)
    assert torch.equal(teacher.probabilities(image), before)
    perturb(teacher)
    assert torch.equal(student.probabilities(image), before)
    assert not torch.equal(teacher.probabilities(image), before)
    ours = {id(tensor) for tensor in student.frozen_parameters()}
    assert {id(tensor) for tensor in teacher.frozen_parameters()} == ours


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("head", names("heads"))
def test_every_head_in_bfloat16(method: str, head: str) -> None:
    model = make(method, head).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(*batch())
    total = torch.stack(list(losses.values())).sum()
    torch.autograd.backward(total)
    assert torch.isfinite(total)
    for name, parameter in model.trainable_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("method", METHODS)
def test_recomputing_changes_nothing(method: str) -> None:
    gradients = []
    for recompute in (False, True):
        model = make(method).train()
        model.backbone.recompute = recompute
        torch.manual_seed(3)
        torch.autograd.backward(torch.stack(list(model(*batch()).values())).sum())
        gradients.append([p.grad for _, p in model.trainable_parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        assert torch.allclose(plain, again, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_explanations_are_shares_of_what_they_name(method: str) -> None:
    model = make(method).eval()
    perturb(model)
    image = torch.randn(2, 4, 64, 96)
    patch = model.backbone.patch

    def explain(image: Tensor, name: str, block: int) -> Tensor:
        _, state = model.backbone.walk(image, model.method, stop=block)
        return model.method.explain(name, state)

    for name, things in model.method.explanations().items():
        assert re.fullmatch(r"[a-z-]+", name)  # it becomes part of a file's name
        for block in (0, model.backbone.depth - 1):
            shares = explain(image, name, block)
            assert shares.shape == (2, len(things), 64 // patch, 96 // patch)
            assert (shares >= 0).all()
            assert torch.allclose(shares.sum(1), torch.ones(()), atol=1e-4)
            assert torch.equal(shares, explain(image, name, block))
            assert torch.allclose(shares[1:], explain(image[1:], name, block), atol=1e-4)
