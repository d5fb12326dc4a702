"""Batches in pinned memory, for asynchronous copies to a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.threads import Indexed


@dataclass(frozen=True)
class _Pinned:
    source: Indexed[Batch]

    def __getitem__(self, index: int) -> Batch:
        return self.source[index].pin_memory()


def pinned(source: Indexed[Batch], device: torch.device) -> Indexed[Batch]:
    """Return the batches in pinned memory for a GPU, else the source itself."""
    return _Pinned(source) if device.type == "cuda" else source
