"""Reading ahead keeps the order, counts the wait and passes errors on."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
import torch

from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.training.prefetch import Prefetch, pinned


class Slow:
    def __init__(self) -> None:
        self.threads: set[int] = set()

    def __getitem__(self, index: int) -> int:
        self.threads.add(threading.get_ident())
        time.sleep(0.02 if index % 2 else 0.001)
        if index == 13:
            raise ValueError("broken item")
        return index * 10


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_order(threads: int) -> None:
    source = Slow()
    prefetch = Prefetch(source, range(2, 9), threads=threads)
    assert list(prefetch) == [20, 30, 40, 50, 60, 70, 80]
    assert prefetch.waited > 0
    assert (threading.get_ident() in source.threads) == (threads == 0)


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_surfaces(threads: int) -> None:
    items = iter(Prefetch(Slow(), range(10, 20), threads=threads))
    assert [next(items) for _ in range(3)] == [100, 110, 120]
    with pytest.raises(ValueError, match="broken item"):
        next(items)


def test_stopping_early_ends_the_threads() -> None:
    before = threading.active_count()
    items = iter(Prefetch(Slow(), range(1000), threads=2))
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_reading_overlaps_with_work() -> None:
    prefetch = Prefetch(Slow(), range(0, 12), threads=2)
    for _ in prefetch:
        time.sleep(0.02)
    assert prefetch.waited < 0.1


class Pinning(Batch):
    """Says that it was pinned, on a machine without a GPU."""

    def pin_memory(self) -> Pinning:
        return replace(self, names=("pinned",))


class Raw:
    def __getitem__(self, index: int) -> Batch:
        image = torch.full((1, 1, 2, 2), index, dtype=torch.uint16)
        return Pinning(image, torch.zeros(1, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize(("device", "names"), [("cuda", ("pinned",)), ("cpu", ())])
def test_only_batches_for_a_gpu_are_pinned(device: str, names: tuple[str, ...]) -> None:
    source = pinned(Raw(), torch.device(device))
    batches = list(Prefetch(source, range(2, 4), threads=1))
    assert [batch.names for batch in batches] == [names, names]
    assert [int(batch.image[0, 0, 0, 0]) for batch in batches] == [2, 3]
    assert batches[0].image.dtype == torch.uint16
