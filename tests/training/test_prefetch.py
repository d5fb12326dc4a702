"""Only batches for a GPU are pinned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.threads import Prefetcher
from rsseg_cli.training.prefetch import pinned


class Pinning(Batch):
    """Batch that records whether it was pinned, on a machine without a GPU."""

    def pin_memory(self) -> Pinning:
        return replace(self, names=("pinned",))


class Raw:
    def __getitem__(self, index: int) -> Batch:
        image = torch.full((1, 1, 2, 2), index, dtype=torch.uint16)
        return Pinning(image, torch.zeros(1, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize(("device", "names"), [("cuda", ("pinned",)), ("cpu", ())])
def test_only_batches_for_a_gpu_are_pinned(device: str, names: tuple[str, ...]) -> None:
    source = pinned(Raw(), torch.device(device))
    batches = list(Prefetcher(source, range(2, 4), threads=1))
    assert [batch.names for batch in batches] == [names, names]
    assert [int(batch.image[0, 0, 0, 0]) for batch in batches] == [2, 3]
    assert batches[0].image.dtype == torch.uint16
