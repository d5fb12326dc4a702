"""Points on the labelled ground, and what maps and labels say there.

A point is (x, y), both in 0..1 of the image. It lies between four pixels; a label there is a
share of each class, and `labelled` is the share that is no `IGNORE`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.classes import IGNORE

NOWHERE = -1
"""Stands for a neighbour beyond the border, where a map is taken to be 0."""


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps (B, C, h, w) at points (B, P, 2), bilinearly: (B, C, P)."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]


def spread(uniform: Tensor, labels: Tensor) -> Tensor:
    """Carry points that are uniform on the unit square over to the labelled pixels.

    First y moves to the rows by their number of labelled pixels, then x to the labelled pixels
    of that row. Where all is labelled nothing moves. Runs without waiting for the device.

    Args:
        uniform: (B, P, 2).
        labels: (B, H, W).

    Returns:
        (B, P, 2), uniform on the pixels whose label is not `IGNORE`.
    """
    labelled = labels != IGNORE
    height, width = labels.shape[1:]
    in_row = labelled.sum(2)
    up_to_row = in_row.cumsum(1)
    up_to_pixel = labelled.flatten(1).cumsum(1)

    total = up_to_row[:, -1:]
    rank = uniform[..., 1] * total
    whole = torch.minimum(rank.long(), (total - 1).clamp(min=0))  # rounding may reach the total
    row = torch.searchsorted(up_to_row, whole, right=True).clamp(max=height - 1)
    here = in_row.gather(1, row)
    before = up_to_row.gather(1, row) - here
    y = row + ((rank - before) / here.clamp(min=1)).clamp(0, 1)

    rank = uniform[..., 0] * here
    whole = torch.minimum(rank.long(), (here - 1).clamp(min=0))
    pixel = torch.searchsorted(up_to_pixel, before + whole, right=True)
    x = pixel.clamp(max=height * width - 1) % width + (rank - whole).clamp(0, 1)
    return torch.stack((x / width, y / height), -1)


@dataclass
class PointLabels:
    """Labels (B, H, W) read at points (B, P, 2)."""

    corners: Tensor
    """(B, 4, P) labels of the four pixels around a point: an index, `IGNORE` or `NOWHERE`."""
    weights: Tensor
    """(B, 4, P) bilinear weights, summing to 1."""
    labelled: Tensor
    """(B, P) share that is not ignored: what the point counts."""

    @classmethod
    def read(cls, labels: Tensor, points: Tensor) -> PointLabels:
        """Look up the four pixels around each point."""
        height, width = labels.shape[1:]
        x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
        left, top = x.floor(), y.floor()
        flat = labels.flatten(1).long()
        corners, weights = [], []
        for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
            column, row = left + right, top + below
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            corners.append(torch.where(inside, flat.gather(1, index.long()), NOWHERE))
            weights.append((1 - (x - column).abs()) * (1 - (y - row).abs()))
        stacked, shares = torch.stack(corners, 1), torch.stack(weights, 1)
        labelled = 1 - (shares * (stacked == IGNORE)).sum(1).clamp(max=1)
        return cls(stacked, shares, labelled)

    def of_all(self, classes: int) -> Tensor:
        """Give the share of every class: (B, K, P)."""
        batch, _, count = self.corners.shape
        rest = (self.corners < 0) | (self.corners >= classes)
        shares = self.weights.new_zeros(batch, classes + 1, count)
        shares.scatter_add_(1, self.corners.masked_fill(rest, classes), self.weights)
        return shares[:, :classes]

    def of(self, classes: Tensor) -> Tensor:
        """Give the shares of chosen classes (B, N) of each image: (B, N, P)."""
        total = self.weights.new_zeros(*classes.shape, self.corners.shape[-1])
        for corner, weight in zip(self.corners.unbind(1), self.weights.unbind(1), strict=True):
            total += weight[:, None] * (corner[:, None] == classes[..., None])
        return total


def present(labels: Tensor, classes: int) -> Tensor:
    """Say which classes each image of (B, H, W) shows: (B, K) booleans."""
    counts = torch.zeros(len(labels), IGNORE + 1, device=labels.device)
    return counts.scatter_(1, labels.flatten(1).long(), 1.0)[:, :classes] > 0
