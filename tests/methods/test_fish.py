"""FISH: squared gradients of single samples choose the elements."""

from __future__ import annotations

import pytest
import torch
from fakes import build, sample
from pydantic import ValidationError
from selections import SeededStep, chosen, made, published_vit_large, train, weights
from torch import Tensor

from rsseg_cli.contract import State
from rsseg_cli.errors import RssegError
from rsseg_cli.methods.fish import Fish
from rsseg_cli.segmenter import Segmenter


def squares(model: Segmenter, numbers: range, candidates: list[Tensor]) -> list[Tensor]:
    """Sum the squared gradients of single samples of step 2."""
    sums = [torch.zeros_like(weight, dtype=torch.float64) for weight in candidates]
    for number in numbers:
        torch.manual_seed(7)
        loss = torch.stack(list(model(*sample(2000 + number)).values())).sum()
        for total, gradient in zip(sums, torch.autograd.grad(loss, candidates), strict=True):
            total += gradient.double().square()
    return sums


def test_the_elements_with_the_largest_squares() -> None:
    model, method = made("fish", samples=6, warmup=2, ratio=0.04)
    method.before_step(SeededStep(model, 2, 20))
    count = round(0.04 * sum(p.numel() for p in model.backbone.parameters()))
    marks = torch.cat([mask.flatten() for mask in chosen(method)])
    assert int(marks.sum()) == count == len(method.index)
    scores = torch.cat(
        [s.flatten() for s in squares(model, range(6), [*method.candidates.weights])]
    )
    best = torch.zeros_like(marks)
    best[scores.argsort(descending=True)[:count]] = True
    assert int((best & marks).sum()) >= 0.999 * count  # sums in another order


def test_one_selection_of_single_samples_after_the_warm_up() -> None:
    model, method = made("fish", samples=6)
    probed = []
    for index in range(40):
        step = SeededStep(model, index, 40)
        method.before_step(step)
        probed.append(step.probed)
    assert probed == [0, 0, 6] + [0] * 37


def test_what_is_not_chosen_stays_bit_equal_under_weight_decay() -> None:
    model, method = made("fish", samples=4, warmup=2)
    before = weights(model)
    train(model, range(102), total=102)
    for old, new, mask in zip(before, weights(model), chosen(method), strict=True):
        assert torch.equal(old[~mask], new[~mask])
        assert not bool((old[mask] == new[mask]).all()) or not bool(mask.any())


def test_forward_is_that_of_the_frozen_backbone() -> None:
    model, method = made("fish", samples=4)
    image = sample(1)[0]
    frozen = build("frozen")
    for a, b in zip(
        model.backbone(image, method).maps, frozen.backbone(image, frozen.method).maps, strict=True
    ):
        assert torch.equal(a, b)
    assert type(method.begin(image, None)) is State  # type: ignore[arg-type]


def test_record_tells_the_selection_once() -> None:
    model, method = made("fish", samples=4, warmup=1)
    train(model, range(3), total=5)
    line = method.log_entry()
    assert line["tuned"] == method.sizes[0]
    assert line["domain_share"] is None
    assert set(line["sensitivity"]) == {"q", "k", "v", "fc1", "fc2"}  # type: ignore[arg-type]
    assert "sensitivity" not in method.log_entry()


def test_counts_at_vit_large() -> None:
    backbone = published_vit_large()
    with torch.device("meta"):
        method = Fish(Fish.Config(), backbone)
    assert method.sizes == [15_209_933]
    assert method.sizes[0] / method.candidates.size == pytest.approx(0.0549, abs=1e-4)


def test_bad_settings() -> None:
    for settings in ({"ratio": 0}, {"ratio": 1.5}, {"samples": 0}):
        with pytest.raises(ValidationError):
            Fish.Config.model_validate(settings)
    with pytest.raises(RssegError, match="elements cannot be chosen"):
        made("fish", ratio=1.0)
