"""Which query answers for which class of an image: the cheapest assignment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.heads._points import PointLabels

WORST = 1.0e9
"""Cost of a pair whose cost is not finite: taken only when nothing else is left."""


@dataclass(frozen=True)
class Weights:
    """What the three parts of the cost, and of the loss, count."""

    classes: float
    masks: float
    dice: float


@dataclass
class Matching:
    """The query of every present class, for each layer and image.

    The N slots of an image hold its classes in ascending order; N is the largest number of
    classes of an image, at least 1.
    """

    queries: Tensor
    """(layers, B, N) index of a query; 0 in an empty slot."""
    classes: Tensor
    """(B, N) index of a class; 0 in an empty slot."""
    taken: Tensor
    """(layers, B, N) booleans: the slot has a query."""


def costs(
    classes: Tensor, masks: Tensor, labels: PointLabels, shares: Tensor, weights: Weights
) -> Tensor:
    """Price every pair of a query and a class.

    Args:
        classes: (B, Q, K+1) logits.
        masks: (B, Q, P) logits at the points.
        labels: What is labelled at the points.
        shares: (B, K, P) share of each class at the points.
        weights: Of the three parts.

    Returns:
        (B, Q, K).
    """
    labelled = labels.labelled[:, :, None]  # (B, P, 1)
    of_class = shares.transpose(1, 2)  # (B, P, K)
    probability = classes.softmax(-1)[..., :-1]
    # The binary cross-entropy of logit x and target t is softplus(x) - x t: linear in t.
    surprise = (F.softplus(masks) @ labelled - masks @ of_class) / labelled.sum(1)[:, None].clamp(
        min=1.0e-6
    )
    covered = masks.sigmoid()
    sizes = covered @ labelled + of_class.sum(1)[:, None]
    dice = 1 - (2 * (covered @ of_class) + 1) / (sizes + 1)
    return weights.masks * surprise + weights.dice * dice - weights.classes * probability


def match(costs: Tensor, present: Tensor) -> Matching:
    """Assign queries to present classes; the one place where the host waits for the device.

    Args:
        costs: (layers, B, Q, K).
        present: (B, K) booleans.
    """
    finite = costs.nan_to_num(WORST, WORST, -WORST)
    priced = finite.masked_fill(~present[:, None], torch.inf).cpu().numpy()
    layers, batch, _, _ = priced.shape
    found = [np.flatnonzero(np.isfinite(image[0])) for image in priced[0]]
    slots = max(1, *(len(classes) for classes in found))
    table = np.zeros((2 * layers + 1, batch, slots), dtype=np.int64)
    queries, taken, of_slot = table[:layers], table[layers:-1], table[-1]
    for image, classes in enumerate(found):
        of_slot[image, : len(classes)] = classes
        for layer in range(layers):
            rows, columns = linear_sum_assignment(priced[layer, image][:, classes])
            queries[layer, image, columns] = rows
            taken[layer, image, columns] = 1
    sent = torch.from_numpy(table)
    if costs.is_cuda:
        sent = sent.pin_memory()
    sent = sent.to(costs.device, non_blocking=True)
    return Matching(
        queries=sent[:layers],
        classes=sent[-1],
        taken=sent[layers:-1].bool(),
    )
