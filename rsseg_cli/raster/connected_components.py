"""Connected components (patches) of a class map: pixels of one class that share a side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from rsseg_cli.classes import IGNORE

Numbers = NDArray[np.int32]


def label_patches(classes: NDArray[np.uint8]) -> tuple[Numbers, int]:
    """Label the patches of a map (h, w), including those of nodata.

    Pixels of a row that follow each other are one run; runs that touch the run of the same class
    in the next row are one patch.

    Returns:
        The number of the patch of each pixel, from 0, and how many there are.
    """
    starts = np.ones(classes.shape, np.bool_)
    starts[:, 1:] = classes[:, 1:] != classes[:, :-1]
    runs = (np.cumsum(starts, dtype=np.int32) - 1).reshape(classes.shape)
    above, below = runs[:-1], runs[1:]
    touch = classes[:-1] == classes[1:]
    # A pair of runs touches along many pixels: the first of them is enough.
    first = touch.copy()
    first[:, 1:] &= ~touch[:, :-1] | starts[:-1, 1:] | starts[1:, 1:]
    count = int(runs[-1, -1]) + 1
    pairs = (above[first], below[first])
    graph = coo_matrix((np.ones(len(pairs[0]), np.bool_), pairs), shape=(count, count))
    patches, of_run = connected_components(graph, directed=False)
    return of_run[runs].astype(np.int32, copy=False), patches


def sieve_patches(classes: NDArray[np.uint8], least: int) -> NDArray[np.uint8]:
    """Replace patches of fewer than `least` pixels by the neighbour with the longest common border.

    Only patches that are large enough themselves count as neighbours, nodata does not, and nodata
    stays. What has no such neighbour stays too. So a patch's fate depends on nothing further than
    its own edge and the sizes of the patches beyond it.

    Args:
        classes: (h, w) class ids, `IGNORE` where there is none.
        least: Least number of pixels of a patch that stays.
    """
    patches, count = label_patches(classes)
    of_patch = np.zeros(count, np.uint8)
    of_patch[patches] = classes
    small = np.bincount(patches.ravel(), minlength=count) < least
    small &= of_patch != IGNORE
    takes = ~small & (of_patch != IGNORE)
    borders = [_borders(patches, small, takes), _borders(patches.T, small, takes)]
    owner, beyond = np.concatenate(borders, 1)
    # Most border pixels per (patch, class beyond); of equals the lowest class.
    key, length = np.unique(owner.astype(np.int64) * 256 + of_patch[beyond], return_counts=True)
    order = np.lexsort((key, -length))
    winners, place = np.unique(key[order] // 256, return_index=True)
    of_patch[winners] = key[order][place] % 256
    sieved: NDArray[np.uint8] = of_patch[patches]
    return sieved


def _borders(patches: Numbers, small: NDArray[Any], takes: NDArray[Any]) -> NDArray[Any]:
    """List (small patch, patch beyond) for each pixel of border between rows."""
    one, other = patches[:-1], patches[1:]
    found = []
    for owner, beyond in ((one, other), (other, one)):
        at = small[owner] & takes[beyond]
        found.append(np.stack([owner[at], beyond[at]]))
    return np.concatenate(found, 1)
