"""What a map file can show of class probabilities, pixel by pixel, as uint8."""

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
"""Highest value of a quantised share: stored value / 254 is the share, 255 is nodata."""


def class_map(ids: Sequence[int], *, reject: float | None = None) -> Product:
    """Make the id of the most probable class; the first of equals.

    Args:
        ids: Class id of each channel, 0..254.
        reject: Pixels whose highest probability is below this share become nodata.
    """
    table = np.array(ids, np.uint8)
    as_is = list(ids) == list(range(len(ids)))
    on_device: dict[torch.device, Tensor] = {}

    def write(probabilities: Tensor, rows: Tensor) -> None:
        if probabilities.device.type == "cpu":
            best, index = _running_max(probabilities)
            np.copyto(rows.numpy()[0], index if as_is else table[index])
        else:
            device = probabilities.device
            ids_there = on_device.setdefault(device, torch.from_numpy(table).to(device))
            best, winner = probabilities.max(0)
            rows[0] = ids_there[winner]
        if reject is not None:
            rows[0].masked_fill_(torch.as_tensor(best) < reject, IGNORE)

    return Product(bands=1, write=write)


def _running_max(probabilities: Tensor) -> tuple[Tensor, NDArray[np.uint8]]:
    """Find the highest of K planes and its number, both (h, w).

    One pass over the planes that NumPy runs on vectors of bytes: some 40 times as fast as
    `Tensor.argmax` over the first axis on a CPU.
    """
    planes = probabilities.float().numpy()
    best = planes[0].copy()
    index = np.zeros(best.shape, np.uint8)
    higher = np.empty(best.shape, np.bool_)
    number = np.empty(best.shape, np.uint8)
    for k in range(1, len(planes)):
        np.greater(planes[k], best, out=higher)
        np.maximum(planes[k], best, out=best)
        # k only grows: the maximum puts it where the plane is higher and keeps the rest.
        np.multiply(higher.view(np.uint8), np.uint8(k), out=number)
        np.maximum(index, number, out=index)
    return torch.from_numpy(best), index


def probabilities(classes: int) -> Product:
    """Make one band per class: its probability in steps of 1/254."""
    return Product(bands=classes, write=_quantise)


def share_of(index: int) -> Product:
    """Make one band: the probability of one class in steps of 1/254."""

    def write(shares: Tensor, rows: Tensor) -> None:
        _quantise(shares[index : index + 1], rows)

    return Product(bands=1, write=write)


def confidence(kind: Confidence) -> Product:
    """Make one band that says how sure the model is, 0 to 1 in steps of 1/254.

    Args:
        kind: `max` is the highest probability, `margin` the highest less the second,
            `entropy` is 1 - H / log K with H the entropy, so that 1 is sure for all three.
    """

    def write(shares: Tensor, rows: Tensor) -> None:
        if kind == "max":
            sure = shares.amax(0)
        elif kind == "margin":
            first, second = shares.topk(min(2, len(shares)), 0).values[[0, -1]]
            sure = first - second if len(shares) > 1 else first
        else:
            sure = 1 - torch.special.entr(shares).sum(0) / math.log(max(2, len(shares)))
        _quantise(sure[None], rows)

    return Product(bands=1, write=write)


def _quantise(shares: Tensor, rows: Tensor) -> None:
    rows.copy_(shares.mul(STEPS).round_().clamp_(0, STEPS))
