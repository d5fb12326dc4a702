"""The set loss against transformers' own, against maths written out, and around ignored pixels."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from rsseg_cli.classes import IGNORE
from rsseg_cli.heads import _criterion
from rsseg_cli.heads._criterion import PointSampling, Predictions, set_losses
from rsseg_cli.heads._matching import LossWeights, match
from rsseg_cli.heads._points import PointLabels, present, sample, spread

WEIGHTS = LossWeights(classes=2.0, masks=5.0, dice=5.0)
SAMPLING = PointSampling(points=96, oversample=3.0, importance=0.75)


def predict(
    *, layers: int = 3, batch: int = 2, queries: int = 8, classes: int = 4, side: int = 8
) -> Predictions:
    return Predictions(
        torch.randn(layers, batch, queries, classes + 1).requires_grad_(),
        torch.randn(layers, batch, queries, 6).requires_grad_(),
        torch.randn(batch, 6, side, side).requires_grad_(),
    )


def blocks(batch: int, classes: int, side: int) -> Tensor:
    """Labels of 4x4 blocks, so that every image shows some of the classes."""
    coarse = torch.randint(0, classes, (batch, side // 4, side // 4))
    return coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)


def losses(
    predictions: Predictions,
    labels: Tensor,
    sampling: PointSampling = SAMPLING,
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    if class_weights is None:
        class_weights = torch.ones(predictions.classes.shape[-1])
        class_weights[-1] = 0.1
    return set_losses(
        predictions, labels, sampling=sampling, weights=WEIGHTS, class_weights=class_weights
    )


def theirs(predictions: Predictions, labels: Tensor, sampling: PointSampling) -> dict[str, Tensor]:
    """transformers' loss, summed over the layers and weighted."""
    classes = predictions.classes.shape[-1] - 1
    config = Mask2FormerConfig(
        num_labels=classes,
        train_num_points=sampling.points,
        oversample_ratio=sampling.oversample,
        importance_sample_ratio=sampling.importance,
    )
    criterion = Mask2FormerLoss(config, {})
    shown = [image.unique() for image in labels]
    masks = [
        torch.stack([(image == index).float() for index in indices])
        for image, indices in zip(labels, shown, strict=True)
    ]
    logits = torch.einsum("lbqc,bchw->lbqhw", predictions.embeddings, predictions.pixels)
    *auxiliary, last = (
        {"masks_queries_logits": m, "class_queries_logits": c}
        for m, c in zip(logits, predictions.classes, strict=True)
    )
    terms = criterion(
        **last, mask_labels=masks, class_labels=shown, auxiliary_predictions=auxiliary
    )
    total = {"class": 2.0, "mask": 5.0, "dice": 5.0}
    names = {"class": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}
    return {
        name: weight
        * torch.stack([t for key, t in terms.items() if key.startswith(names[name])]).sum()
        for name, weight in total.items()
    }


@pytest.fixture
def same_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw one set of points per count, the same for every image, layer and mask."""
    generator = torch.Generator().manual_seed(5)
    drawn: dict[int, Tensor] = {}
    draw = torch.rand

    def rand(first: int, count: int, two: int, device: torch.device) -> Tensor:
        if count not in drawn:
            drawn[count] = draw(1, count, two, generator=generator)
        return drawn[count].repeat(first, 1, 1)

    monkeypatch.setattr(torch, "rand", rand)


@pytest.mark.usefixtures("same_points")
@pytest.mark.parametrize("classes", [1, 4, 30])
@pytest.mark.parametrize("seed", range(3))
def test_equals_transformers_when_all_is_labelled(classes: int, seed: int) -> None:
    torch.manual_seed(seed)
    ours = predict(classes=classes)
    labels = blocks(2, classes, 32)
    expected, found = theirs(ours, labels, SAMPLING), losses(ours, labels)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
    parts = (ours.classes, ours.embeddings, ours.pixels)
    gradients = torch.autograd.grad(sum(expected.values()), parts, retain_graph=True)
    for mine, reference in zip(
        torch.autograd.grad(sum(found.values()), parts), gradients, strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("same_points")
def test_more_classes_than_queries_equals_transformers() -> None:
    torch.manual_seed(0)
    ours = predict(classes=30, queries=5)
    labels = blocks(2, 30, 32)
    assert len(labels[0].unique()) > 5
    expected = theirs(ours, labels, SAMPLING)
    for name, value in losses(ours, labels).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


def test_our_random_points_give_transformers_loss_on_average() -> None:
    torch.manual_seed(0)
    ours = predict(layers=1)
    labels = blocks(2, 4, 32)
    sampling = PointSampling(points=512, oversample=3.0, importance=0.75)
    with torch.no_grad():
        mine = torch.stack([sum(losses(ours, labels, sampling).values()) for _ in range(40)])
        reference = torch.stack([sum(theirs(ours, labels, sampling).values()) for _ in range(40)])
    error = (mine.var() / 40 + reference.var() / 40).sqrt()
    assert (mine.mean() - reference.mean()).abs() < 4 * error
    assert mine.std() < 0.1 * mine.mean()


def test_ignored_ground_has_no_say() -> None:
    """Scores that lie wholly over ignored pixels change neither the loss nor get a gradient."""
    torch.manual_seed(0)
    ours = predict(side=16)
    labels = blocks(2, 4, 64)
    labels[:, :, 32:] = IGNORE
    torch.manual_seed(1)
    before = losses(ours, labels)
    (gradient,) = torch.autograd.grad(sum(before.values()), ours.pixels)
    assert gradient[..., :8].abs().amin() > 0
    assert gradient[..., 9:].abs().amax() == 0  # column 8 is read from labelled pixels nearby
    with torch.no_grad():
        ours.pixels[..., 9:] = 50 * torch.randn_like(ours.pixels[..., 9:])
    torch.manual_seed(1)
    after = losses(ours, labels)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0)


def test_scattered_labels_equal_the_maths_written_out() -> None:
    """Half of the pixels ignored at random: costs and loss, point by point and pair by pair."""
    torch.manual_seed(0)
    ours = predict(layers=1, batch=1, queries=3, classes=2)
    labels = torch.randint(0, 2, (1, 12, 12))
    labels[torch.rand(1, 12, 12) < 0.5] = IGNORE
    drawn = torch.rand(1, 200, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape, device: drawn[:, : shape[1]])
        found = losses(ours, labels, PointSampling(points=200, oversample=1.0, importance=0.0))

    points = spread(drawn, labels)[0]
    logits = sample(
        torch.einsum("qc,chw->qhw", ours.embeddings[0, 0], ours.pixels[0])[None], points[None]
    )[0]
    share = torch.zeros(3, 200)  # of class 0, class 1, and ignored
    for index, (x, y) in enumerate((points * 12 - 0.5).tolist()):
        for row in range(12):
            for column in range(12):
                weight = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                share[min(int(labels[0, row, column]), 2), index] += weight
    counted = 1 - share[2]
    pairs = {}
    for query in range(3):
        for index in range(2):
            target, logit = share[index], logits[query]
            one, zero = F.logsigmoid(logit), F.logsigmoid(-logit)
            surprise = -(target * one + (counted - target) * zero).sum() / counted.sum()
            covered = logit.sigmoid()
            sizes = (covered * counted).sum() + target.sum()
            dice = 1 - (2 * (covered * target).sum() + 1) / (sizes + 1)
            likely = ours.classes[0, 0, query].softmax(-1)[index]
            pairs[query, index] = (5 * surprise + 5 * dice - 2 * likely, surprise, dice)
    first, second = min(
        permutations(range(3), 2),
        key=lambda q: float((pairs[q[0], 0][0] + pairs[q[1], 1][0]).detach()),
    )
    chosen = pairs[first, 0], pairs[second, 1]
    torch.testing.assert_close(found["mask"], 5 * (chosen[0][1] + chosen[1][1]) / 2)
    torch.testing.assert_close(found["dice"], 5 * (chosen[0][2] + chosen[1][2]) / 2)
    costs = _criterion.costs(
        ours.classes[0],
        logits[None],
        PointLabels.read(labels, points[None]),
        share[None, :2],
        WEIGHTS,
    )
    for (query, index), (cost, _, _) in pairs.items():
        torch.testing.assert_close(costs[0, query, index], cost)


def test_ignored_half_equals_the_other_half_alone() -> None:
    """With points on every pixel, ignoring half an image is the same as not having it."""
    torch.manual_seed(0)
    whole = predict(batch=1, side=32)
    labels = blocks(1, 4, 32)
    labels[:, 16:] = IGNORE
    # Pixel centres of the labelled half, and nothing uncertain: no random number is left.
    y, x = torch.meshgrid(torch.arange(16) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    grid = torch.stack((x / 32, y / 16), -1).view(1, -1, 2)
    sampling = PointSampling(points=512, oversample=1.0, importance=0.0)
    half = Predictions(whole.classes, whole.embeddings, whole.pixels[:, :, :16])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape, device: grid[:, : shape[1]])
        found = losses(whole, labels, sampling)
        expected = losses(half, labels[:, :16], sampling)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_image_without_labels_adds_nothing() -> None:
    torch.manual_seed(0)
    both = predict(batch=2)
    labels = blocks(2, 4, 32)
    labels[1] = IGNORE
    terms = losses(both, labels)
    gradients = torch.autograd.grad(
        sum(terms.values()), (both.classes, both.embeddings, both.pixels)
    )
    assert torch.isfinite(torch.stack(list(terms.values()))).all()
    assert gradients[0][:, 0].abs().sum() > 0
    assert gradients[0][:, 1].abs().sum() == 0
    assert gradients[1][:, 1].abs().sum() == 0
    assert gradients[2][1].abs().sum() == 0


def test_batch_without_labels_gives_zero() -> None:
    ours = predict()
    terms = losses(ours, torch.full((2, 32, 32), IGNORE, dtype=torch.uint8))
    assert torch.stack(list(terms.values())).tolist() == [0.0, 0.0, 0.0]
    gradient = torch.autograd.grad(sum(terms.values()), ours.pixels)[0]
    assert not gradient.any()


def test_class_weights_count_in_the_class_term_only() -> None:
    torch.manual_seed(0)
    ours = predict(layers=1, batch=1)
    labels = blocks(1, 4, 32)
    weights = torch.tensor([3.0, 0.5, 1.0, 2.0, 0.1])
    torch.manual_seed(1)
    found = losses(ours, labels, class_weights=weights)
    torch.manual_seed(1)
    plain = losses(ours, labels)
    torch.manual_seed(1)
    costs = _criterion._matching_costs(ours, labels, SAMPLING, WEIGHTS)
    matching = match(costs.detach(), present(labels, 4))
    wanted = torch.full((8,), 4)
    wanted[matching.queries[0, 0]] = matching.classes[0]
    expected = torch.nn.CrossEntropyLoss(weight=weights)(ours.classes[0, 0], wanted)
    torch.testing.assert_close(found["class"], 2.0 * expected)
    assert found["class"] != plain["class"]
    torch.testing.assert_close(found["mask"], plain["mask"])


def test_loss_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    ours = predict()
    labels = blocks(2, 4, 32)
    torch.manual_seed(1)
    expected = losses(ours, labels)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(ours, labels)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_same_seed_same_loss() -> None:
    ours, labels = predict(), blocks(2, 4, 32)
    torch.manual_seed(3)
    first = losses(ours, labels)
    torch.manual_seed(3)
    again = losses(ours, labels)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_one_transfer_for_all_layers_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever brings a tensor to the host is counted: there is one, in the matching."""
    moved = []
    for name in ("cpu", "item", "tolist", "__bool__", "__int__", "__float__", "nonzero"):
        original = getattr(Tensor, name)

        def count(
            self: Tensor, *args: object, _call: object = original, _name: str = name
        ) -> object:
            moved.append(_name)
            return _call(self, *args)

        monkeypatch.setattr(Tensor, name, count)
    losses(predict(layers=10, batch=3), blocks(3, 4, 32))
    assert moved == ["cpu"]


def test_costs_that_are_not_finite_do_not_crash() -> None:
    costs = torch.rand(1, 1, 3, 2)
    costs[0, 0, 0] = torch.nan
    costs[0, 0, 1, 0] = torch.inf
    matching = match(costs, torch.ones(1, 2, dtype=torch.bool))
    assert matching.queries[0, 0].tolist() == [2, 1]
