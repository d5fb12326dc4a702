"""Point sampling: random points on labelled pixels, and maps and labels at these points.

A point is (x, y), both as fractions of the image. Labels at a point are interpolated bilinearly
from four pixels: they are a fraction per class. The remainder is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.classes import IGNORE

OUTSIDE = -1
"""Label of a pixel beyond the border, where `grid_sample` reads 0 from maps."""


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Interpolate maps (B, C, h, w) bilinearly at points (B, P, 2): (B, C, P)."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]


def spread(uniform: Tensor, labels: Tensor) -> Tensor:
    """Map points that are uniform on the unit square to uniform points on the labelled pixels.

    This is inverse transform sampling: y selects a row by its number of labelled pixels, then x
    selects a labelled pixel of that row. If all pixels are labelled, the points stay the same.

    Args:
        uniform: (B, P, 2).
        labels: (B, H, W).

    Returns:
        (B, P, 2), uniform on the pixels whose label is not `IGNORE`.
    """
    labelled = labels != IGNORE
    height, width = labels.shape[1:]
    row_counts = labelled.sum(2)
    up_to_row = row_counts.cumsum(1)
    up_to_pixel = labelled.flatten(1).cumsum(1)

    total = up_to_row[:, -1:]
    rank = uniform[..., 1] * total
    index = torch.minimum(rank.long(), (total - 1).clamp(min=0))  # rounding may reach the total
    row = torch.searchsorted(up_to_row, index, right=True).clamp(max=height - 1)
    in_row = row_counts.gather(1, row)
    before = up_to_row.gather(1, row) - in_row
    y = row + ((rank - before) / in_row.clamp(min=1)).clamp(0, 1)

    rank = uniform[..., 0] * in_row
    index = torch.minimum(rank.long(), (in_row - 1).clamp(min=0))
    pixel = torch.searchsorted(up_to_pixel, before + index, right=True)
    x = pixel.clamp(max=height * width - 1) % width + (rank - index).clamp(0, 1)
    return torch.stack((x / width, y / height), -1)


@dataclass
class PointLabels:
    """Labels (B, H, W) interpolated at points (B, P, 2)."""

    corners: Tensor
    """(B, 4, P) labels of the four pixels around a point: an index, `IGNORE` or `OUTSIDE`."""
    weights: Tensor
    """(B, 4, P) bilinear weights, summing to 1."""
    labelled: Tensor
    """(B, P) fraction that is not ignored: the weight of the point."""

    @classmethod
    def read(cls, labels: Tensor, points: Tensor) -> PointLabels:
        """Read the four pixels around each point."""
        height, width = labels.shape[1:]
        x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
        left, top = x.floor(), y.floor()
        flat = labels.flatten(1).long()
        corners, weights = [], []
        for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
            column, row = left + right, top + below
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            corners.append(torch.where(inside, flat.gather(1, index.long()), OUTSIDE))
            weights.append((1 - (x - column).abs()) * (1 - (y - row).abs()))
        all_corners, all_weights = torch.stack(corners, 1), torch.stack(weights, 1)
        labelled = 1 - (all_weights * (all_corners == IGNORE)).sum(1).clamp(max=1)
        return cls(all_corners, all_weights, labelled)

    def fractions(self, classes: int) -> Tensor:
        """Compute the fraction of each of K classes: (B, K, P)."""
        batch, _, count = self.corners.shape
        other = (self.corners < 0) | (self.corners >= classes)
        fractions = self.weights.new_zeros(batch, classes + 1, count)
        fractions.scatter_add_(1, self.corners.masked_fill(other, classes), self.weights)
        return fractions[:, :classes]

    def fractions_of(self, classes: Tensor) -> Tensor:
        """Compute the fractions of selected classes (B, N) of each image: (B, N, P)."""
        total = self.weights.new_zeros(*classes.shape, self.corners.shape[-1])
        for corner, weight in zip(self.corners.unbind(1), self.weights.unbind(1), strict=True):
            total += weight[:, None] * (corner[:, None] == classes[..., None])
        return total


def present(labels: Tensor, classes: int) -> Tensor:
    """Return which of K classes occur in each image of (B, H, W): (B, K) booleans."""
    counts = torch.zeros(len(labels), IGNORE + 1, device=labels.device)
    return counts.scatter_(1, labels.flatten(1).long(), 1.0)[:, :classes] > 0
