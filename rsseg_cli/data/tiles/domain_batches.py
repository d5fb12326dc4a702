"""Batches of two domains: labelled source tiles and unlabelled target tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rsseg_cli.data.tiles.tile_stream import Batch, TileStream


@dataclass
class DomainBatch(Batch):
    """Labelled source tiles first, then target tiles."""

    sources: int = 0
    """Number S of source tiles. The label of target tiles is 0 at valid pixels, else `IGNORE`."""


def _domain_batch(batch: Batch, sources: int) -> DomainBatch:
    return DomainBatch(batch.image, batch.label, batch.names, batch.domains, batch.seeds, sources)


@dataclass(frozen=True)
class TargetTiles:
    """Unlabelled tiles of the target, in the unit of the source."""

    tiles: TileStream
    unit_scale: float = 1.0
    """Factor from stored values to the unit of the source."""

    def __getitem__(self, index: int) -> DomainBatch:
        """Read item `index`."""
        batch = _domain_batch(self.tiles[index], 0)
        # Both streams have the same seed: without this, source and target tiles share theirs.
        batch.seeds = tuple(seed ^ 1 for seed in batch.seeds)
        if self.unit_scale != 1.0:
            batch.image = batch.image.float() * self.unit_scale
        return batch


@dataclass(frozen=True)
class JoinedTiles:
    """Item i of both streams as one batch; the same seed gives both the same tile size."""

    source: TileStream
    target: TargetTiles

    def __getitem__(self, index: int) -> DomainBatch:
        """Read item `index`."""
        source, target = self.source[index], self.target[index]
        return DomainBatch(
            image=_concatenate(source.image, target.image),
            label=torch.cat((source.label, target.label)),
            names=source.names + target.names,
            domains=source.domains + target.domains,
            seeds=source.seeds + target.seeds,
            sources=len(source.image),
        )


@dataclass(frozen=True)
class ProbeTiles:
    """Source and target items in turn; only source items until `target_too` returns True."""

    source: TileStream
    target: TargetTiles
    target_too: Callable[[], bool]
    """Called for every item."""

    def __getitem__(self, index: int) -> DomainBatch:
        """Read item `index`."""
        if index % 2 and self.target_too():
            return self.target[index // 2]
        batch = self.source[index // 2 if self.target_too() else index]
        return _domain_batch(batch, len(batch.image))


def _concatenate(source: Tensor, target: Tensor) -> Tensor:
    """Concatenate two batches of samples, as float32 if their types differ."""
    if source.dtype != target.dtype:
        source, target = source.float(), target.float()
    return torch.cat((source, target))
