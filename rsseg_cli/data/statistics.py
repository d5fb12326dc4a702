"""Mean and standard deviation of every band over the training ground, read in samples."""

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
"""Windows that are read at most."""


@dataclass
class Moments:
    """Sums that give mean and standard deviation per band; parts can be added (Chan et al. 1983).

    Attributes:
        count: (C) number of samples.
        mean: (C) their mean.
        spread: (C) their summed squared distance to the mean.
    """

    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]

    @classmethod
    def none(cls, bands: int) -> Moments:
        """Start with no samples."""
        return cls(np.zeros(bands), np.zeros(bands), np.zeros(bands))

    def add(self, samples: NDArray[np.float64], there: NDArray[np.bool_]) -> None:
        """Add samples (C, n) where `there` (C, n) is True."""
        count = there.sum(1).astype(np.float64)
        mean = np.where(there, samples, 0.0).sum(1) / np.maximum(count, 1)
        spread = np.where(there, (samples - mean[:, None]) ** 2, 0.0).sum(1)
        total = self.count + count
        apart = mean - self.mean
        share = count / np.maximum(total, 1)
        self.mean = self.mean + apart * share
        self.spread = self.spread + spread + apart**2 * self.count * share
        self.count = total


def measure(
    opener: Opener, pairs: Sequence[Pair], *, most: int | None = WINDOWS
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation per band, in stored units.

    Reads at most `most` windows (all when None), spread evenly over the usable ground; the same
    ground gives the same numbers. Missing samples do not count. A constant band gets the
    deviation 1.

    Raises:
        RssegError: Not a single valid pixel.
    """
    moments = Moments.none(len(opener.bands))
    for pair, windows in _sampled(pairs, most):
        floating = np.dtype(pair.info.dtype).kind == "f"
        with opener.scene(pair.image) as scene:
            nodata = scene.nodata
        marker = float("nan") if floating or nodata is None else nodata
        fill = None if nodata is None and not floating else [marker] * len(opener.bands)
        with opener.scene(pair.image, fill=fill) as scene:
            for window in windows:
                samples, valid = scene.read(window)
                there = np.isfinite(samples) & valid
                if nodata is not None and samples.dtype.kind == "i":
                    there &= samples != nodata
                flat = samples.reshape(len(samples), -1).astype(np.float64)
                moments.add(
                    np.nan_to_num(flat, posinf=0.0, neginf=0.0), there.reshape(len(samples), -1)
                )
    if not moments.count.all():
        raise RssegError(
            "the training images have no valid pixel"
            if not moments.count.any()
            else f"band {int(moments.count.argmin()) + 1} holds no valid pixel",
            where=", ".join(str(pair.image) for pair in pairs[:3]),
            fix="check the nodata value (`reader: {nodata: ...}` in dataset.yaml)",
        )
    std = np.sqrt(moments.spread / moments.count)
    std[std < 1e-12] = 1.0
    return tuple(map(float, moments.mean)), tuple(map(float, std))


def _sampled(pairs: Sequence[Pair], most: int | None) -> list[tuple[Pair, list[Window]]]:
    """Choose every n-th window of the usable pixels."""
    covering = [(pair, window) for pair in pairs for window in _windows(pair)]
    step = 1 if most is None else max(1, ceil(len(covering) / most))
    # One at random of every `step` neighbours: a fixed stride could walk down a single column.
    generator = np.random.default_rng(0)
    starts = range(0, len(covering), step)
    picks = [min(start + int(generator.integers(step)), len(covering) - 1) for start in starts]
    chosen = [covering[pick] for pick in picks]
    grouped: dict[str, tuple[Pair, list[Window]]] = {}
    for pair, window in chosen:
        grouped.setdefault(pair.info.path, (pair, []))[1].append(window)
    return list(grouped.values())


def _windows(pair: Pair) -> list[Window]:
    return [
        Window(x, y, min(SIDE_PX, region.right - x), min(SIDE_PX, region.bottom - y))
        for region in pair.windows
        for y in range(region.y, region.bottom, SIDE_PX)
        for x in range(region.x, region.right, SIDE_PX)
    ]
