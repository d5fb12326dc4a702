"""Opens the tiles of a run, for training and for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rsseg_cli import distributed
from rsseg_cli.config import RunConfig
from rsseg_cli.contract import Bands
from rsseg_cli.data.pair import SourcePairs
from rsseg_cli.data.tiles.class_index import ClassIndex
from rsseg_cli.data.tiles.tile_stream import TileStream
from rsseg_cli.data.tiles.validation_tiles import CoveringTiles
from rsseg_cli.errors import RssegError
from rsseg_cli.training.loop import Training

PROBE_SEED = 0x9E0BE
"""Added to the seed of the tiles that methods probe, so that they differ from training tiles."""


@dataclass(frozen=True)
class RunTiles:
    """Opens the tiles of a run.

    Attributes:
        bands: The model's bands.
        per_pass: Tiles of one forward pass in this process.
    """

    config: RunConfig
    bands: Bands
    per_pass: int

    def covering(
        self, parts: Sequence[SourcePairs], bands: Bands | None = None, *, whole: bool = False
    ) -> CoveringTiles:
        """Open tiles that cover some scenes: this process' shard of them, or all if `whole`."""
        return CoveringTiles(
            parts,
            bands or self.bands,
            tile=self.config.data.tile,
            batch=self.per_pass,
            rank=0 if whole else distributed.rank(),
            world=1 if whole else distributed.world_size(),
        )

    def random(
        self,
        parts: Sequence[SourcePairs],
        batch: int,
        *,
        bands: Bands | None = None,
        seed: int = 0,
        index: ClassIndex | None = None,
        micro_batches: int = 1,
    ) -> TileStream:
        """Open random tiles of some scenes; item i is a pure function of i.

        Args:
            parts: The scenes.
            batch: Tiles per item.
            bands: The bands, if they are not the model's.
            seed: Added to the run's seed. Unless it is 0, all processes get the same stream.
            index: Samples tiles by class; None: uniformly.
            micro_batches: Items per step.
        """
        return TileStream(
            parts,
            bands or self.bands,
            tile=self.config.data.tile,
            batch=batch,
            seed=self.config.training.seed + seed,
            scale=self.config.augment.scale,
            index=index,
            rank=0 if seed else distributed.rank(),
            world=1 if seed else distributed.world_size(),
            micro_batches=micro_batches,
        )

    def micro_batches(self, batch: int) -> int:
        """Return the number of micro-batches of a step with `batch` tiles each."""
        return self.config.training.batch // (batch * distributed.world_size())


def tiles_per_pass(training: Training) -> int:
    """Return the number of tiles of one forward pass in this process.

    Raises:
        RssegError: The batch cannot be split evenly.
    """
    passes = training.grad_accumulation * distributed.world_size()
    if training.batch % passes:
        raise RssegError(
            f"a batch of {training.batch} cannot be cut into {passes} equal parts",
            where="training.batch, training.grad_accumulation",
            fix=f"training.batch={passes * max(1, training.batch // passes)}",
        )
    return training.batch // passes
