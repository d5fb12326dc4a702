"""Index of classes: pixels per class, and pixels to draw tiles around."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.data.pair import SourcePairs
from rsseg_cli.raster.decode import Labels
from rsseg_cli.raster.grid import Window

CHUNK_PX = 1024
"""Side of the chunks that labels are read in."""
PER_CHUNK = 64
"""Largest number of pixels of a class that are kept per chunk."""
PER_CLASS = 16_384
"""Largest number of pixels of a class that are kept in all."""
STEP = 4
"""A class is first searched on every STEP-th row and column only."""


@dataclass(frozen=True)
class ClassIndex:
    """Number and positions of the pixels of each class.

    Attributes:
        counts: (K) labelled pixels per class.
        positions: Per class (n, 3): index of the pair (over all sources), x and y.
    """

    counts: NDArray[np.int64]
    positions: tuple[NDArray[np.int32], ...]

    @classmethod
    def build(cls, sources: Sequence[SourcePairs]) -> ClassIndex:
        """Read and check all usable label pixels once.

        Raises:
            RssegError: A label has values that are not classes, or does not match its image.
        """
        classes = len(sources[0][0].classes)
        counts = np.zeros(256, np.int64)
        positions: list[list[NDArray[np.int32]]] = [[] for _ in range(classes)]
        generator = np.random.default_rng(0)
        for pair, window, labels in _chunks(sources):
            chunk_counts = np.bincount(labels.ravel(), minlength=256)
            counts += chunk_counts
            for index in np.flatnonzero(chunk_counts[:classes]):
                rows, columns = _sample(labels, int(index), generator)
                pairs = np.full(len(rows), pair)
                points = np.stack([pairs, columns + window.x, rows + window.y], axis=1)
                positions[index].append(points.astype(np.int32))
        return cls(counts[:classes], tuple(_thin(points, generator) for points in positions))

    @property
    def shares(self) -> NDArray[np.float64]:
        """(K) fraction of each class in all labelled pixels."""
        return self.counts / max(1, int(self.counts.sum()))

    def draw(self, generator: np.random.Generator) -> tuple[int, int, int]:
        """Draw a class uniformly and one of its pixels: index of the pair, x, y."""
        return self._draw_pixel(int(generator.choice(np.flatnonzero(self.counts))), generator)

    def _draw_pixel(self, cls: int, generator: np.random.Generator) -> tuple[int, int, int]:
        positions = self.positions[cls]
        pair, x, y = positions[int(generator.integers(len(positions)))]
        return int(pair), int(x), int(y)


def _chunks(sources: Sequence[SourcePairs]) -> Iterator[tuple[int, Window, Labels]]:
    """Yield the index of the pair, the window and the labels of each chunk."""
    for number, (opener, pair) in enumerate(
        (opener, p) for opener, pairs in sources for p in pairs
    ):
        reader = opener.labels(pair)
        if reader is None:
            continue
        with reader:
            for window in pair.tiles(CHUNK_PX):
                yield number, window, reader.read(window)


def _sample(
    labels: Labels, index: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sample pixels (rows, columns) of a class, on a coarse grid if the class occurs there."""
    rows, columns = np.nonzero(labels[::STEP, ::STEP] == index)
    rows, columns = rows * STEP, columns * STEP
    if not rows.size:
        rows, columns = np.nonzero(labels == index)
    chosen = generator.permutation(len(rows))[:PER_CHUNK]
    return rows[chosen], columns[chosen]


def _thin(points: list[NDArray[np.int32]], generator: np.random.Generator) -> NDArray[np.int32]:
    if not points:
        return np.zeros((0, 3), np.int32)
    joined = np.concatenate(points)
    return joined[generator.permutation(len(joined))[:PER_CLASS]]
