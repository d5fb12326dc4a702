"""ChildTuning: form D chooses once by batches, form F draws a mask in every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import build, sample
from pydantic import ValidationError
from selections import SETTINGS, SeededStep, chosen, made, published_vit_large, train, weights

from rsseg_cli.methods.childtune import ChildTune
from rsseg_cli.training import optimizer


# --- form D ----------------------------------------------------------------------------------
@pytest.mark.parametrize("max_norm", [None, 1e-3])
def test_squares_of_clipped_batch_gradients(max_norm: float | None) -> None:
    model, method = made("childtune", samples=7, batch=3, max_norm=max_norm)
    step = SeededStep(model, 2, 20)
    method.candidates.requires_grad_(True)
    found = method.score(step, weights(model)).values
    assert step.probed == 3
    candidates = [*method.candidates.weights]
    expected = [torch.zeros_like(weight, dtype=torch.float64) for weight in candidates]
    for number in range(3):
        torch.manual_seed(7)
        loss = torch.stack(list(model(*sample(2000 + number, 3)).values())).sum()
        for total, gradient in zip(expected, torch.autograd.grad(loss, candidates), strict=True):
            exact = gradient.double()
            if max_norm is not None:
                exact = exact * min(1.0, max_norm / (float(exact.norm()) + 1e-6))
            total += exact.square() / 3
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-3, atol=1e-14)


def test_five_percent_train_and_the_rest_stays_bit_equal() -> None:
    model, method = made("childtune", samples=8, warmup=2)
    assert isinstance(method, ChildTune)
    before = weights(model)
    train(model, range(102), total=102)
    masks = chosen(method)
    assert sum(int(mask.sum()) for mask in masks) == round(0.05 * method.candidates.total)
    for old, new, mask in zip(before, weights(model), masks, strict=True):
        assert torch.equal(old[~mask], new[~mask])
    restarted, other = made("childtune", seed=4, samples=8, warmup=2)
    restarted.load_adapter_state(model.adapter_state())
    assert all(torch.equal(a, b) for a, b in zip(masks, chosen(other), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(restarted), strict=True))


# --- form F ----------------------------------------------------------------------------------
def test_with_chance_one_it_is_full_tuning_bit_by_bit() -> None:
    model, method = made("childtune", form="F", ratio=1.0)
    plain, _ = made("childtune", form="F")
    train(model, range(5), total=5)
    adam = optimizer.build(SETTINGS, plain)
    for index in range(5):  # no hooks
        torch.manual_seed(index)
        torch.autograd.backward(torch.stack(list(plain(*sample(index, 2)).values())).sum())
        adam.step()
        adam.zero_grad(set_to_none=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(plain), strict=True))
    assert method.no_grad_clip() == []


def masked(seed: int, index: int, **settings: Any) -> list[torch.Tensor]:
    """Return gradients of 1 as form F masks and scales them."""
    model, method = made("childtune", seed=seed, form="F", **settings)
    for weight in method.candidates.weights:
        weight.grad = torch.ones_like(weight)
    method.before_update(SeededStep(model, index, 20))
    return [weight.grad for weight in method.candidates.weights if weight.grad is not None]


def test_masks_of_form_f() -> None:
    found = torch.cat([one.flatten() for one in masked(0, 3, ratio=0.05)])
    assert set(found.unique().tolist()) == {0.0, 20.0}
    assert float(found.mean()) == pytest.approx(1, abs=0.05)
    again, later, other = (
        torch.cat([one.flatten() for one in masked(*which, ratio=0.05)])
        for which in ((0, 3), (0, 4), (1, 3))
    )
    assert torch.equal(found, again)
    for different in (later, other):
        # Two independent masks agree in 0.05^2 of the elements.
        agreed = float(((found > 0) & (different > 0)).float().mean())
        assert agreed == pytest.approx(0.0025, abs=0.001)


def test_form_f_moves_everything_and_restarts_exactly() -> None:
    model, method = made("childtune", form="F", ratio=0.3)
    before = weights(model)
    adam = train(model, range(20), total=24)
    moved = [(a != b).float().mean() for a, b in zip(before, weights(model), strict=True)]
    assert float(torch.stack(moved).min()) > 0.98
    packed = {name: tensor.clone() for name, tensor in model.adapter_state().items()}
    assert sum(name.startswith("backbone.") for name in packed) == 12
    other, _ = made("childtune", seed=3, form="F", ratio=0.3)
    other.load_adapter_state(packed)
    for one in (model, other):  # moments start anew in both
        train(one, range(20, 24), total=24)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(other), strict=True))
    line = method.log_entry()
    assert line["tuned"] == round(0.3 * method.candidates.size)
    assert len(adam.state) == len(list(model.trainable_parameters()))


def test_warm_up_of_form_f() -> None:
    for warmup, expected in ((None, [True, True]), (1, [False, True])):
        model, method = made("childtune", form="F", warmup=warmup)
        found = []
        for index in range(2):
            method.before_step(SeededStep(model, index, 40))
            found.append(all(weight.requires_grad for weight in method.candidates.weights))
        assert found == expected


@pytest.mark.parametrize("form", ["D", "F"])
def test_starts_at_the_frozen_backbone(form: str) -> None:
    model, method = made("childtune", form=form)
    image, frozen = sample(1)[0], build("frozen")
    expected = frozen.backbone(image, frozen.method).maps
    found = model.backbone(image, method).maps
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("form", "elements"), [("D", 15_209_933), ("F", 13_841_203)])
def test_counts_at_vit_large(form: str, elements: int) -> None:
    """D: 5 % of the backbone. F: 5 % of what may move, anew in every step."""
    backbone = published_vit_large()
    with torch.device("meta"):
        method = ChildTune(ChildTune.Config.model_validate({"form": form}), backbone)
    assert method.candidates.total == 304_198_656
    assert method.candidates.size == 276_824_064
    assert sum(p.numel() for _, p in method.trainable_parameters(backbone)) == 276_824_064
    assert (method.sizes[0] if form == "D" else method.log_entry()["tuned"]) == elements


@pytest.mark.parametrize(
    "settings",
    [{"ratio": 0}, {"ratio": 1.1}, {"form": "G"}, {"samples": 0}, {"batch": 0}, {"max_norm": 0}],
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChildTune.Config.model_validate(settings)
