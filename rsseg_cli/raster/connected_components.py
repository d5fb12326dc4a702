"""Connected components (patches) of a class map: pixels of one class that share a side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from rsseg_cli.classes import IGNORE

PatchNumbers = NDArray[np.int32]
"""Number of the patch of each pixel, from 0."""


def label_patches(classes: NDArray[np.uint8]) -> tuple[PatchNumbers, int]:
    """Label the patches of a map (h, w), including those of nodata.

    Pixels of one class that follow each other in a row form a run. Runs of the same class that
    touch in adjacent rows form a patch.

    Returns:
        The patch of each pixel (h, w), and the number of patches.
    """
    starts = np.ones(classes.shape, np.bool_)
    starts[:, 1:] = classes[:, 1:] != classes[:, :-1]
    runs = (np.cumsum(starts, dtype=np.int32) - 1).reshape(classes.shape)
    above, below = runs[:-1], runs[1:]
    touch = classes[:-1] == classes[1:]
    # Two runs touch along many pixels: only the first one is used.
    first = touch.copy()
    first[:, 1:] &= ~touch[:, :-1] | starts[:-1, 1:] | starts[1:, 1:]
    count = int(runs[-1, -1]) + 1
    pairs = (above[first], below[first])
    graph = coo_matrix((np.ones(len(pairs[0]), np.bool_), pairs), shape=(count, count))
    patches, patch_of_run = connected_components(graph, directed=False)
    return patch_of_run[runs].astype(np.int32, copy=False), patches


def sieve_patches(classes: NDArray[np.uint8], min_pixels: int) -> NDArray[np.uint8]:
    """Replace small patches by the class of the neighbour with the longest common border.

    Only neighbours that are large enough themselves, and not nodata, count. Patches without such a
    neighbour and patches of nodata are kept. A patch therefore depends only on the patches that
    touch it.

    Args:
        classes: (h, w) class ids, `IGNORE` for nodata.
        min_pixels: Smallest size of a patch that is kept.
    """
    patches, count = label_patches(classes)
    class_of = np.zeros(count, np.uint8)
    class_of[patches] = classes
    small = np.bincount(patches.ravel(), minlength=count) < min_pixels
    small &= class_of != IGNORE
    large = ~small & (class_of != IGNORE)
    borders = [_borders(patches, small, large), _borders(patches.T, small, large)]
    owner, neighbour = np.concatenate(borders, 1)
    # Longest border per (patch, neighbouring class); the lowest class of equal lengths.
    key, length = np.unique(owner.astype(np.int64) * 256 + class_of[neighbour], return_counts=True)
    order = np.lexsort((key, -length))
    replaced, first = np.unique(key[order] // 256, return_index=True)
    class_of[replaced] = key[order][first] % 256
    sieved: NDArray[np.uint8] = class_of[patches]
    return sieved


def _borders(patches: PatchNumbers, small: NDArray[Any], large: NDArray[Any]) -> NDArray[Any]:
    """Return a pair (small patch, large patch) for each pixel of border between rows."""
    upper, lower = patches[:-1], patches[1:]
    borders = []
    for owner, neighbour in ((upper, lower), (lower, upper)):
        between = small[owner] & large[neighbour]
        borders.append(np.stack([owner[between], neighbour[between]]))
    return np.concatenate(borders, 1)
