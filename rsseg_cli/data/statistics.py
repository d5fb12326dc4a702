"""Mean and standard deviation of every band over the training pixels, estimated from windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.data.pair import Opener, Pair
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.grid import Window

SIDE_PX = 256
"""Side of a sampled window."""
WINDOWS = 512
"""Largest number of windows that are read."""


@dataclass
class Moments:
    """Running mean and variance per band (Chan et al. 1983).

    Attributes:
        count: (C) number of samples.
        mean: (C) their mean.
        squares: (C) their summed squared distance to the mean.
    """

    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    def add(self, samples: NDArray[np.float64], valid: NDArray[np.bool_]) -> None:
        """Add samples (C, n) where `valid` (C, n) is True."""
        count = valid.sum(1).astype(np.float64)
        mean = np.where(valid, samples, 0.0).sum(1) / np.maximum(count, 1)
        squares = np.where(valid, (samples - mean[:, None]) ** 2, 0.0).sum(1)
        total = self.count + count
        delta = mean - self.mean
        fraction = count / np.maximum(total, 1)
        self.mean = self.mean + delta * fraction
        self.squares = self.squares + squares + delta**2 * self.count * fraction
        self.count = total


def measure(
    opener: Opener, pairs: Sequence[Pair], *, most: int | None = WINDOWS
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation per band, in stored units.

    Reads at most `most` windows (all when None), spread evenly over the usable pixels; the same
    pixels give the same numbers. Missing samples are left out. The deviation of a constant band
    is 1.

    Raises:
        RssegError: A band has no valid pixel.
    """
    moments = Moments(*np.zeros((3, len(opener.bands))))
    for pair, windows in _sample(pairs, most):
        floating = np.dtype(pair.info.dtype).kind == "f"
        with opener.scene(pair.image) as scene:
            nodata = scene.nodata
        marker = float("nan") if floating or nodata is None else nodata
        fill = None if nodata is None and not floating else [marker] * len(opener.bands)
        with opener.scene(pair.image, fill=fill) as scene:
            for window in windows:
                samples, mask = scene.read(window)
                valid = np.isfinite(samples) & mask
                if nodata is not None and samples.dtype.kind == "i":
                    valid &= samples != nodata
                flat = samples.reshape(len(samples), -1).astype(np.float64)
                flat = np.nan_to_num(flat, posinf=0.0, neginf=0.0)
                moments.add(flat, valid.reshape(len(samples), -1))
    if not moments.count.all():
        raise RssegError(
            "the training images have no valid pixel"
            if not moments.count.any()
            else f"band {int(moments.count.argmin()) + 1} has no valid pixel",
            where=", ".join(str(pair.image) for pair in pairs[:3]),
            fix="check the nodata value (`reader: {nodata: ...}` in dataset.yaml)",
        )
    std = np.sqrt(moments.squares / moments.count)
    std[std < 1e-12] = 1.0
    return tuple(map(float, moments.mean)), tuple(map(float, std))


def _sample(pairs: Sequence[Pair], most: int | None) -> list[tuple[Pair, list[Window]]]:
    """Choose every n-th window of the usable pixels."""
    tiles = [(pair, window) for pair in pairs for window in pair.tiles(SIDE_PX)]
    step = 1 if most is None else max(1, ceil(len(tiles) / most))
    # One at random of every `step` neighbours: a fixed stride could stay in a single column.
    generator = np.random.default_rng(0)
    by_scene: dict[str, tuple[Pair, list[Window]]] = {}
    for start in range(0, len(tiles), step):
        pair, window = tiles[min(start + int(generator.integers(step)), len(tiles) - 1)]
        by_scene.setdefault(pair.info.path, (pair, []))[1].append(window)
    return list(by_scene.values())
