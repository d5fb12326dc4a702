"""Batches of two domains: tiles with labels, and tiles of the ground to adapt to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from rsseg_cli.data.tiles.tile_stream import Batch, TileStream


@dataclass
class DomainBatch(Batch):
    """Labelled tiles first, then tiles of the target.

    Attributes:
        sources: Number S of labelled tiles. The label of the others is 0 where there is an
            image, `IGNORE` elsewhere.
    """

    sources: int = 0

    @property
    def groups(self) -> tuple[int, ...]:
        """Sizes of the two domains' parts, as far as they are there."""
        return tuple(count for count in (self.sources, self.size - self.sources) if count)

    def cut(self, pieces: int) -> list[Self]:
        """Split into equal pieces of both domains, in order."""
        return [replace(piece, sources=self.sources // pieces) for piece in super().cut(pieces)]


def _marked(batch: Batch, sources: int) -> DomainBatch:
    return DomainBatch(batch.image, batch.label, batch.names, batch.domains, sources)


@dataclass(frozen=True)
class TargetTiles:
    """Tiles of the target, in the unit of the source.

    Attributes:
        tiles: Unlabelled tiles.
        gain: Factor from the unit in which they are stored.
    """

    tiles: TileStream
    gain: float = 1.0

    def __getitem__(self, index: int) -> DomainBatch:
        """Read item `index`."""
        batch = _marked(self.tiles[index], 0)
        if self.gain != 1.0:
            batch.image = batch.image.float() * self.gain
        return batch


@dataclass(frozen=True)
class JoinedTiles:
    """Item i of both streams, as one batch; both have the same seed, so their tiles one size."""

    source: TileStream
    target: TargetTiles

    def __getitem__(self, index: int) -> DomainBatch:
        """Read item `index`."""
        one, other = self.source[index], self.target[index]
        return DomainBatch(
            image=_together(one.image, other.image),
            label=torch.cat((one.label, other.label)),
            names=one.names + other.names,
            domains=one.domains + other.domains,
            sources=len(one.image),
        )


@dataclass(frozen=True)
class ProbeTiles:
    """Every second item is of the target, as soon as that is of use; all others are labelled.

    Attributes:
        target_too: Asked whenever an item is read.
    """

    source: TileStream
    target: TargetTiles
    target_too: Callable[[], bool]

    def __getitem__(self, index: int) -> DomainBatch:
        """Read item `index`."""
        if index % 2 and self.target_too():
            return self.target[index // 2]
        batch = self.source[index // 2 if self.target_too() else index]
        return _marked(batch, len(batch.image))


def _together(one: Tensor, other: Tensor) -> Tensor:
    """Stack two batches of samples; stored types that differ become float32."""
    if one.dtype != other.dtype:
        one, other = one.float(), other.float()
    return torch.cat((one, other))
