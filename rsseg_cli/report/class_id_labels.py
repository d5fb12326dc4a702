"""Numbers on the patches of a class map, for eyes that do not tell its colours apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_cdt, find_objects, label

from rsseg_cli.classes import Class
from rsseg_cli.raster.decode import Labels

LEAST = 0.012
"""Share of a picture that a patch has at least to get a number."""
MOST = 24
"""Numbers in one picture."""

Mark = tuple[float, float, str]
"""Column, row and text."""


def marks(labels: Labels, classes: Sequence[Class]) -> tuple[Mark, ...]:
    """Put the id of its class on every large patch, where it is widest.

    Args:
        labels: (h, w) class indices.
        classes: What they mean.
    """
    found: list[tuple[int, Mark]] = []
    for index, one in enumerate(classes):
        own = labels == index
        if own.sum() < LEAST * labels.size:
            continue
        patches, _ = label(own)
        sizes = np.bincount(patches.ravel())
        for number, box in enumerate(find_objects(patches), start=1):
            if sizes[number] < LEAST * labels.size:
                continue
            inside = np.pad(patches[box] == number, 1)
            depth = distance_transform_cdt(inside)
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            place = (box[1].start + int(column) - 1, box[0].start + int(row) - 1)
            found.append((int(sizes[number]), (float(place[0]), float(place[1]), str(one.id))))
    return tuple(mark for _, mark in sorted(found, key=lambda each: -each[0])[:MOST])
