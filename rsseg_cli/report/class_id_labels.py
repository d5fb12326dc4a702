"""Class ids on the patches of a map, for readers who cannot distinguish its colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_cdt, find_objects, label

from rsseg_cli.classes import Class
from rsseg_cli.raster.decode import Labels

LEAST = 0.012
"""Smallest fraction of a picture that a labelled patch covers."""
MOST = 24
"""Labels in one picture."""

IdLabel = tuple[float, float, str]
"""Column, row and text."""


def class_id_labels(labels: Labels, classes: Sequence[Class]) -> tuple[IdLabel, ...]:
    """Return the class id of every large patch of class indices (h, w), at its widest point."""
    sized: list[tuple[int, IdLabel]] = []
    for index, cls in enumerate(classes):
        mask = labels == index
        if mask.sum() < LEAST * labels.size:
            continue
        patches, _ = label(mask)
        sizes = np.bincount(patches.ravel())
        for number, box in enumerate(find_objects(patches), start=1):
            if sizes[number] < LEAST * labels.size:
                continue
            depth = distance_transform_cdt(np.pad(patches[box] == number, 1))
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            x, y = box[1].start + int(column) - 1, box[0].start + int(row) - 1
            sized.append((int(sizes[number]), (float(x), float(y), str(cls.id))))
    return tuple(text for _, text in sorted(sized, key=lambda each: -each[0])[:MOST])
