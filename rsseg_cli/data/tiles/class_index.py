"""Index of classes: pixels per class, and pixels to draw tiles around."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.data.pair import SourcePairs
from rsseg_cli.raster.decode import Labels
from rsseg_cli.raster.grid import Window, blocks

CHUNK_PX = 1024
"""Side of the part of a label that is looked at in one go."""
PER_CHUNK = 64
"""Pixels of a class that are kept of a chunk."""
PER_CLASS = 16_384
"""Pixels of a class that are kept in all."""
STEP = 4
"""Pixels are looked for on every STEP-th row and column first."""


@dataclass(frozen=True)
class ClassIndex:
    """Counts and positions of the classes on some ground.

    Attributes:
        counts: (K) labelled pixels per class.
        positions: Per class (n, 3): number of the pair (over all parts), x and y.
    """

    counts: NDArray[np.int64]
    positions: tuple[NDArray[np.int32], ...]

    @classmethod
    def build(cls, parts: Sequence[SourcePairs]) -> ClassIndex:
        """Read every label of the usable ground once; all of it is checked on the way.

        Raises:
            RssegError: A label has values that are not classes, or does not match its image.
        """
        classes = len(parts[0][0].classes)
        counts = np.zeros(256, np.int64)
        kept: list[list[NDArray[np.int32]]] = [[] for _ in range(classes)]
        generator = np.random.default_rng(0)
        for number, window, labels in _chunks(parts):
            counted = np.bincount(labels.ravel(), minlength=256)
            counts += counted
            for index in np.flatnonzero(counted[:classes]):
                rows, columns = _pick(labels, int(index), generator)
                here = np.full(len(rows), number)
                found = np.stack([here, columns + window.x, rows + window.y], axis=1)
                kept[index].append(found.astype(np.int32))
        positions = tuple(_thin(parts, generator) for parts in kept)
        return cls(counts[:classes], positions)

    @property
    def shares(self) -> NDArray[np.float64]:
        """(K) share of each class in all labelled pixels."""
        return self.counts / max(1, int(self.counts.sum()))

    def draw(self, generator: np.random.Generator) -> tuple[int, int, int]:
        """Draw a class with equal chance and one of its pixels: number of the pair, x, y."""
        present = np.flatnonzero(self.counts)
        positions = self.positions[int(generator.choice(present))]
        which, x, y = positions[int(generator.integers(len(positions)))]
        return int(which), int(x), int(y)


def _chunks(parts: Sequence[SourcePairs]) -> Iterator[tuple[int, Window, Labels]]:
    pairs = [(opener, pair) for opener, own in parts for pair in own]
    for number, (opener, pair) in enumerate(pairs):
        reader = opener.labels(pair)
        if reader is None:
            continue
        with reader:
            for region in pair.windows:
                for chunk in blocks(region.width, region.height, (CHUNK_PX, CHUNK_PX)):
                    window = chunk.shift(region.x, region.y)
                    yield number, window, reader.read(window)


def _pick(
    labels: Labels, index: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pick some pixels (rows, columns) of a class, from a coarse grid if that shows it."""
    rows, columns = np.nonzero(labels[::STEP, ::STEP] == index)
    rows, columns = rows * STEP, columns * STEP
    if not rows.size:
        rows, columns = np.nonzero(labels == index)
    chosen = generator.permutation(len(rows))[:PER_CHUNK]
    return rows[chosen], columns[chosen]


def _thin(parts: list[NDArray[np.int32]], generator: np.random.Generator) -> NDArray[np.int32]:
    if not parts:
        return np.zeros((0, 3), np.int32)
    together = np.concatenate(parts)
    return together[generator.permutation(len(together))[:PER_CLASS]]
