"""Map layers (uint8), computed from class probabilities pixel by pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsseg_cli.choices import Confidence
from rsseg_cli.classes import IGNORE
from rsseg_cli.raster.blend import Product

STEPS = 254
"""Highest stored value of a probability: stored value / 254 is the probability, 255 is nodata."""


def class_map(ids: Sequence[int], *, reject: float | None = None) -> Product:
    """Build the layer with the id of the most probable class; the first one in case of a tie.

    Args:
        ids: Class id of each channel, 0..254.
        reject: Pixels whose highest probability is below this become nodata.
    """
    table = np.array(ids, np.uint8)
    is_identity = list(ids) == list(range(len(ids)))
    on_device: dict[torch.device, Tensor] = {}

    def write(probabilities: Tensor, rows: Tensor) -> None:
        if probabilities.device.type == "cpu":
            best, index = _running_max(probabilities)
            np.copyto(rows.numpy()[0], index if is_identity else table[index])
        else:
            device = probabilities.device
            ids = on_device.setdefault(device, torch.from_numpy(table).to(device))
            best, argmax = probabilities.max(0)
            rows[0] = ids[argmax]
        if reject is not None:
            rows[0].masked_fill_(torch.as_tensor(best) < reject, IGNORE)

    return Product(bands=1, write=write)


def _running_max(probabilities: Tensor) -> tuple[Tensor, NDArray[np.uint8]]:
    """Compute the maximum over K planes and its argmax, both (h, w).

    On a CPU this is some 40 times faster than `Tensor.argmax` over the first axis.
    """
    planes = probabilities.float().numpy()
    best = planes[0].copy()
    index = np.zeros(best.shape, np.uint8)
    higher = np.empty(best.shape, np.bool_)
    number = np.empty(best.shape, np.uint8)
    for k in range(1, len(planes)):
        np.greater(planes[k], best, out=higher)
        np.maximum(planes[k], best, out=best)
        # k grows: the maximum writes it where the plane is higher and keeps the other indices.
        np.multiply(higher.view(np.uint8), np.uint8(k), out=number)
        np.maximum(index, number, out=index)
    return torch.from_numpy(best), index


def probabilities(classes: int) -> Product:
    """Build the layer with one band per class: its probability in steps of 1/254."""
    return Product(bands=classes, write=_quantise)


def class_probability(index: int) -> Product:
    """Build the layer with the probability of one class in steps of 1/254."""

    def write(probabilities: Tensor, rows: Tensor) -> None:
        _quantise(probabilities[index : index + 1], rows)

    return Product(bands=1, write=write)


def confidence(kind: Confidence) -> Product:
    """Build the layer with the model's confidence, 0 to 1 in steps of 1/254.

    Args:
        kind: `max` is the highest probability, `margin` the highest minus the second,
            `entropy` is 1 - H / log K with the entropy H. A certain prediction has 1.
    """

    def write(probabilities: Tensor, rows: Tensor) -> None:
        if kind == "max":
            value = probabilities.amax(0)
        elif kind == "margin":
            first, second = probabilities.topk(min(2, len(probabilities)), 0).values[[0, -1]]
            value = first - second if len(probabilities) > 1 else first
        else:
            entropy = torch.special.entr(probabilities).sum(0)
            value = 1 - entropy / math.log(max(2, len(probabilities)))
        _quantise(value[None], rows)

    return Product(bands=1, write=write)


def _quantise(probabilities: Tensor, rows: Tensor) -> None:
    rows.copy_(probabilities.mul(STEPS).round_().clamp_(0, STEPS))
