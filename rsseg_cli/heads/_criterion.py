"""Set loss of mask classification, in which ignored pixels have no influence.

For every layer's predictions a Hungarian matching assigns one query to each present class. That
query is trained on the class and its mask, all other queries on "no object". Masks are compared
at points: uniform ones for the matching, mostly uncertain ones for the loss (PointRend, arXiv
1912.08193; Mask2Former, arXiv 2112.01527, section 3.3). The expected loss is that of the published
code, but two things are computed differently. Points are drawn once per image instead of once per
image, layer and mask, so that labels are read once. Mask logits at the matching's points are
computed from the pixel embeddings there, since bilinear sampling and projection commute.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.contract import batch_shard
from rsseg_cli.heads._matching import LossWeights, Matching, costs, match
from rsseg_cli.heads._points import PointLabels, present, sample, spread


@dataclass(frozen=True)
class PointSampling:
    """Numbers of points at which masks are compared."""

    points: int
    """Number of points P."""
    oversample: float
    """Candidates per point, from which the most uncertain are selected."""
    importance: float
    """Fraction of the points selected for their uncertainty; the others are uniform."""

    @property
    def candidates(self) -> int:
        """Number of candidates S."""
        return int(self.points * self.oversample)

    @property
    def uncertain(self) -> int:
        """Number of points selected from the candidates."""
        return int(self.points * self.importance)


@dataclass
class Predictions:
    """Predictions of all layers of the decoder."""

    classes: Tensor
    """(layers, B, Q, K+1) logits; the last one is "no object"."""
    embeddings: Tensor
    """(layers, B, Q, C) mask embeddings; their product with `pixels` is the mask logits."""
    pixels: Tensor
    """(B, C, h, w) pixel embeddings."""


# Compilation would break the graph at the matching, and recompile for each number of classes.
@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's own lacks types
def set_losses(
    predictions: Predictions,
    labels: Tensor,
    *,
    sampling: PointSampling,
    weights: LossWeights,
    class_weights: Tensor,
) -> dict[str, Tensor]:
    """Compute the weighted terms `class`, `mask` and `dice`, each summed over the layers.

    Args:
        predictions: Predictions of L layers.
        labels: (B, H, W) class indices, `IGNORE` elsewhere.
        sampling: Numbers of points; torch's global generator draws them.
        weights: Weights of the three terms, in the matching costs and in the loss.
        class_weights: (K+1,), the last one for "no object".
    """
    with torch.autocast(labels.device.type, enabled=False):
        predictions = Predictions(
            predictions.classes.float(),
            predictions.embeddings.float(),
            predictions.pixels.float(),
        )
        is_present = present(labels, predictions.classes.shape[-1] - 1)
        with torch.no_grad():
            matching = match(_matching_costs(predictions, labels, sampling, weights), is_present)
        masks = batch_shard.mean(is_present.sum().float()).clamp(min=1.0e-6)
        class_term = _class_term(predictions.classes, is_present, matching, class_weights)
        cross_entropy, dice = _mask_terms(predictions, labels, matching, sampling)
        return {
            "class": weights.classes * class_term,
            "mask": weights.masks * cross_entropy / masks,
            "dice": weights.dice * dice / masks,
        }


def _draw(count: int, labels: Tensor) -> Tensor:
    """Draw uniform points (B, count, 2) on the labelled pixels."""
    return spread(torch.rand(len(labels), count, 2, device=labels.device), labels)


def _matching_costs(
    predictions: Predictions, labels: Tensor, sampling: PointSampling, weights: LossWeights
) -> Tensor:
    """Compute the costs (layers, B, Q, K) of all layers at one set of points."""
    points = _draw(sampling.points, labels)
    at_points = PointLabels.read(labels, points)
    fractions = at_points.fractions(predictions.classes.shape[-1] - 1)
    pixels = sample(predictions.pixels, points)  # (B, C, P)
    # Layer by layer: the masks of all of them at once would be the step's largest tensor.
    return torch.stack(
        [
            costs(classes, embeddings @ pixels, at_points, fractions, weights)
            for classes, embeddings in zip(predictions.classes, predictions.embeddings, strict=True)
        ]
    )


def _class_term(
    classes: Tensor, is_present: Tensor, matching: Matching, class_weights: Tensor
) -> Tensor:
    """Compute the weighted mean cross-entropy of all queries; images without labels are left out.

    Args:
        classes: (layers, B, Q, K+1) logits.
        is_present: (B, K) booleans: the image contains the class.
        matching: The queries of these classes.
        class_weights: (K+1,).
    """
    layers, batch, queries, width = classes.shape
    # An additional column receives the writes of the empty slots.
    targets = torch.full((layers, batch, queries + 1), width - 1, device=classes.device)
    columns = torch.where(matching.matched, matching.queries, queries)
    targets = targets.scatter(2, columns, matching.classes.expand_as(columns))[..., :queries]
    weight = class_weights.float()[targets] * is_present.any(1)[:, None]
    cross_entropy = F.cross_entropy(classes.flatten(0, 2), targets.flatten(), reduction="none")
    sums = (cross_entropy.view_as(weight) * weight).sum((1, 2))
    return (sums / batch_shard.mean(weight.sum((1, 2))).clamp(min=1.0e-6)).sum()


def _mask_terms(
    predictions: Predictions, labels: Tensor, matching: Matching, sampling: PointSampling
) -> tuple[Tensor, Tensor]:
    """Compute binary cross-entropy and dice loss, summed over all matched masks."""
    logits, targets, labelled = _at_loss_points(predictions, labels, matching, sampling)
    counts = labelled.sum(-1).clamp(min=1e-6)
    cross_entropy = (labelled * F.softplus(logits) - logits * targets).sum(-1) / counts
    probability = logits.sigmoid()
    sizes = (probability * labelled).sum(-1) + targets.sum(-1)
    dice = 1 - (2 * (probability * targets).sum(-1) + 1) / (sizes + 1)
    # Empty slots are multiplied by 0: removing them would wait for the device.
    return (cross_entropy * matching.matched).sum(), (dice * matching.matched).sum()


def _at_loss_points(
    predictions: Predictions, labels: Tensor, matching: Matching, sampling: PointSampling
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample the matched masks at their most uncertain candidates and at some uniform points.

    Returns:
        Mask logits, fractions of the slot's class, and labelled fractions, each (layers, B, N, P).
    """
    layers, _, slots = matching.queries.shape
    index = matching.queries[..., None].expand(-1, -1, -1, predictions.embeddings.shape[-1])
    embeddings = predictions.embeddings.gather(2, index)  # (layers, B, N, C)
    masks = torch.einsum("lbnc,bchw->blnhw", embeddings, predictions.pixels).flatten(1, 2)

    def read(count: int) -> tuple[Tensor, Tensor, Tensor]:
        points = _draw(count, labels)
        at_points = PointLabels.read(labels, points)
        logits = torch.unflatten(sample(masks, points), 1, (layers, slots)).transpose(0, 1)
        fractions = at_points.fractions_of(matching.classes).expand_as(logits)
        return logits, fractions, at_points.labelled[:, None].expand_as(logits)

    candidates = read(sampling.candidates)
    uncertainty = candidates[0].detach().abs()
    keep = uncertainty.topk(sampling.uncertain, largest=False, sorted=False).indices
    uniform = read(sampling.points - sampling.uncertain)
    logits, fractions, labelled = (
        torch.cat((candidate.gather(-1, keep), other), -1)
        for candidate, other in zip(candidates, uniform, strict=True)
    )
    return logits, fractions, labelled
