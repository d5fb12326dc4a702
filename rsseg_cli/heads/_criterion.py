"""The set loss of mask classification; ignored pixels are in neither matching nor loss.

For every layer's predictions a Hungarian matching gives each present class one query. That query
learns the class and the class' mask, the others learn "no object". Masks are compared at points:
uniform ones for the matching, mostly uncertain ones for the loss (PointRend, arXiv 1912.08193;
Mask2Former, arXiv 2112.01527, section 3.3). Two things differ from the common code, neither of
them in what is optimised: points are drawn once per image, not once per image, layer and mask, so
that labels are looked up once; and mask logits at the matching's points come from the pixel
embeddings there, since reading bilinearly and projecting commute.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli import batch_shard
from rsseg_cli.heads._matching import Matching, Weights, costs, match
from rsseg_cli.heads._points import PointLabels, present, sample, spread


@dataclass(frozen=True)
class Sampling:
    """How points are drawn."""

    points: int
    """Points P at which masks are compared."""
    oversample: float
    """Candidates per point, from which the most uncertain are taken."""
    importance: float
    """Share of the points taken for their uncertainty; the others are uniform."""

    @property
    def candidates(self) -> int:
        """Number of candidates S."""
        return int(self.points * self.oversample)

    @property
    def uncertain(self) -> int:
        """Number of points taken from the candidates."""
        return int(self.points * self.importance)


@dataclass
class Predictions:
    """What a decoder says after each of its layers."""

    classes: Tensor
    """(layers, B, Q, K+1) logits; the last one is "no object"."""
    embeddings: Tensor
    """(layers, B, Q, C); times `pixels` it gives the mask logits."""
    pixels: Tensor
    """(B, C, h, w)."""


# Compiled it would break at the matching, and again for each number of classes in a batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's own lacks types
def set_losses(
    predictions: Predictions,
    labels: Tensor,
    *,
    sampling: Sampling,
    weights: Weights,
    class_weights: Tensor,
) -> dict[str, Tensor]:
    """Name the weighted terms, each summed over the layers.

    Args:
        predictions: Of L layers.
        labels: (B, H, W) class indices, `IGNORE` elsewhere.
        sampling: How points are drawn, from torch's global random numbers.
        weights: Of the three terms; those of the costs are the same.
        class_weights: (K+1,), the last one for "no object".
    """
    with torch.autocast(labels.device.type, enabled=False):
        wide = Predictions(
            predictions.classes.float(),
            predictions.embeddings.float(),
            predictions.pixels.float(),
        )
        shown = present(labels, wide.classes.shape[-1] - 1)
        with torch.no_grad():
            matching = match(_all_costs(wide, labels, sampling, weights), shown)
        targets = batch_shard.mean(shown.sum().float()).clamp(min=1.0e-6)
        surprise, dice = _mask_terms(wide, labels, matching, sampling)
        return {
            "class": weights.classes * _class_term(wide.classes, shown, matching, class_weights),
            "mask": weights.masks * surprise / targets,
            "dice": weights.dice * dice / targets,
        }


def _draw(count: int, labels: Tensor) -> Tensor:
    """Draw points (B, count, 2) on the labelled ground."""
    return spread(torch.rand(len(labels), count, 2, device=labels.device), labels)


def _all_costs(
    predictions: Predictions, labels: Tensor, sampling: Sampling, weights: Weights
) -> Tensor:
    """Price the pairs of all layers at one set of points: (layers, B, Q, K)."""
    points = _draw(sampling.points, labels)
    at_points = PointLabels.read(labels, points)
    shares = at_points.of_all(predictions.classes.shape[-1] - 1)
    pixels = sample(predictions.pixels, points)  # (B, C, P)
    # Layer by layer: the masks of all of them at once would be the step's largest tensor.
    return torch.stack(
        [
            costs(classes, embeddings @ pixels, at_points, shares, weights)
            for classes, embeddings in zip(predictions.classes, predictions.embeddings, strict=True)
        ]
    )


def _class_term(
    classes: Tensor, shown: Tensor, matching: Matching, class_weights: Tensor
) -> Tensor:
    """Cross-entropy of all queries, averaged by weight; unlabelled images are left out."""
    layers, batch, queries, width = classes.shape
    # One column too many, which takes what the empty slots write.
    wanted = torch.full((layers, batch, queries + 1), width - 1, device=classes.device)
    place = torch.where(matching.taken, matching.queries, queries)
    wanted = wanted.scatter(2, place, matching.classes.expand_as(place))[..., :queries]
    weight = class_weights.float()[wanted] * shown.any(1)[:, None]
    surprise = F.cross_entropy(classes.flatten(0, 2), wanted.flatten(), reduction="none")
    sums = (surprise.view_as(weight) * weight).sum((1, 2))
    return (sums / batch_shard.mean(weight.sum((1, 2))).clamp(min=1.0e-6)).sum()


def _mask_terms(
    predictions: Predictions, labels: Tensor, matching: Matching, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice loss of the matched masks, summed over all of them."""
    logits, shares, labelled = _at_chosen_points(predictions, labels, matching, sampling)
    counts = labelled.sum(-1)
    surprise = (labelled * F.softplus(logits) - logits * shares).sum(-1) / counts.clamp(min=1e-6)
    covered = logits.sigmoid()
    sizes = (covered * labelled).sum(-1) + shares.sum(-1)
    dice = 1 - (2 * (covered * shares).sum(-1) + 1) / (sizes + 1)
    # Empty slots multiply by 0 instead of being cut out: shapes stay those of the matching.
    return (surprise * matching.taken).sum(), (dice * matching.taken).sum()


def _at_chosen_points(
    predictions: Predictions, labels: Tensor, matching: Matching, sampling: Sampling
) -> tuple[Tensor, Tensor, Tensor]:
    """Read the matched masks where they are unsure, and at some uniform points.

    Returns:
        Mask logits, shares of the wanted class, and labelled shares, each (layers, B, N, P).
    """
    layers, batch, slots = matching.queries.shape
    wanted = matching.queries[..., None].expand(-1, -1, -1, predictions.embeddings.shape[-1])
    chosen = predictions.embeddings.gather(2, wanted)  # (layers, B, N, C)
    masks = torch.einsum("lbnc,bchw->blnhw", chosen, predictions.pixels).flatten(1, 2)

    def by_layer(points: Tensor) -> Tensor:
        return torch.unflatten(sample(masks, points), 1, (layers, slots)).transpose(0, 1)

    points = _draw(sampling.candidates, labels)
    at_points = PointLabels.read(labels, points)
    logits = by_layer(points)
    keep = logits.detach().abs().topk(sampling.uncertain, largest=False, sorted=False).indices
    shares = at_points.of(matching.classes).expand(layers, -1, -1, -1).gather(-1, keep)
    labelled = at_points.labelled[:, None].expand(layers, batch, slots, -1).gather(-1, keep)

    points = _draw(sampling.points - sampling.uncertain, labels)
    at_points = PointLabels.read(labels, points)
    others = by_layer(points)
    parts = (
        (logits.gather(-1, keep), others),
        (shares, at_points.of(matching.classes).expand(layers, -1, -1, -1)),
        (labelled, at_points.labelled[:, None].expand(layers, batch, slots, -1)),
    )
    first, second, third = (torch.cat(part, -1) for part in parts)
    return first, second, third
