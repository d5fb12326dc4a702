"""Hungarian matching of queries to the classes of an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.heads._points import PointLabels

WORST = 1.0e9
"""Replacement of a cost that is not finite: such a pair is matched last."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the three terms of the matching cost and of the loss."""

    classes: float
    masks: float
    dice: float


@dataclass
class Matching:
    """The query of every present class, for each layer and image.

    The N slots of an image are its classes in ascending order; N is the largest number of classes
    of an image, at least 1.
    """

    queries: Tensor
    """(layers, B, N) index of a query; 0 in an empty slot."""
    classes: Tensor
    """(B, N) index of a class; 0 in an empty slot."""
    matched: Tensor
    """(layers, B, N) booleans: the slot has a query."""


def costs(
    classes: Tensor, masks: Tensor, labels: PointLabels, fractions: Tensor, weights: LossWeights
) -> Tensor:
    """Compute the matching cost of every pair of a query and a class.

    Args:
        classes: (B, Q, K+1) logits.
        masks: (B, Q, P) logits at the points.
        labels: Labels at the points.
        fractions: (B, K, P) fraction of each class at the points.
        weights: Weights of the three terms.

    Returns:
        (B, Q, K).
    """
    labelled = labels.labelled[:, :, None]  # (B, P, 1)
    targets = fractions.transpose(1, 2)  # (B, P, K)
    class_probability = classes.softmax(-1)[..., :-1]
    # The binary cross-entropy of logit x and target t is softplus(x) - x t: linear in t.
    counts = labelled.sum(1)[:, None].clamp(min=1.0e-6)
    cross_entropy = (F.softplus(masks) @ labelled - masks @ targets) / counts
    mask_probability = masks.sigmoid()
    sizes = mask_probability @ labelled + targets.sum(1)[:, None]
    dice = 1 - (2 * (mask_probability @ targets) + 1) / (sizes + 1)
    return weights.masks * cross_entropy + weights.dice * dice - weights.classes * class_probability


def match(costs: Tensor, present: Tensor) -> Matching:
    """Assign a query to each present class at the least total cost.

    This is the only device synchronisation of a training step.

    Args:
        costs: (layers, B, Q, K).
        present: (B, K) booleans.
    """
    finite = costs.nan_to_num(WORST, WORST, -WORST)
    on_host = finite.masked_fill(~present[:, None], torch.inf).cpu().numpy()
    layers, batch, _, _ = on_host.shape
    image_classes = [np.flatnonzero(np.isfinite(image[0])) for image in on_host[0]]
    slots = max(1, *(len(classes) for classes in image_classes))
    # One array for all three results: a single copy to the device.
    table = np.zeros((2 * layers + 1, batch, slots), dtype=np.int64)
    queries, matched, slot_classes = table[:layers], table[layers:-1], table[-1]
    for image, classes in enumerate(image_classes):
        slot_classes[image, : len(classes)] = classes
        for layer in range(layers):
            rows, columns = linear_sum_assignment(on_host[layer, image][:, classes])
            queries[layer, image, columns] = rows
            matched[layer, image, columns] = 1
    tensor = torch.from_numpy(table)
    if costs.is_cuda:
        tensor = tensor.pin_memory()
    tensor = tensor.to(costs.device, non_blocking=True)
    return Matching(tensor[:layers], tensor[-1], tensor[layers:-1].bool())
