"""Choice of the batch size: fast, within memory, and with little padding."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from rsseg_cli.predict.tta import as_signed

PROBE_FRACTION = 0.02
"""Fraction of a scene's tiles that trials may take; smaller scenes use the default batch."""
MIN_SPEEDUP = 0.97
"""A batch is better if its time per tile is below this fraction of the best so far."""
SIZE_PENALTY = 0.01
"""Cost of half or twice the default batch, as a fraction of the padded number of tiles."""
ROUNDS = 2
"""Repetitions of each timing; the fastest counts."""
MEMORY_FRACTION = 0.8
"""Fraction of the GPU's memory that a batch may use."""


def even_batch(tiles: int, default: int, largest: int | None = None) -> int:
    """Choose the batch size near the default whose last batch needs least padding.

    All batches have one shape, because the last bits of scores depend on it. Results are at least
    half the default, whose distance counts as a cost, and at most `largest`.
    """
    largest = max(default, largest or 0)
    if tiles <= largest:
        return tiles

    def cost(batch: int) -> float:
        padded = -(-tiles // batch) * batch
        return padded * (1 + SIZE_PENALTY * (max(default / batch, batch / default) - 1))

    return min(range(largest, -(-default // 2) - 1, -1), key=cost)


def fastest_batch(
    infer: Callable[[Tensor], Tensor], tile: Tensor, default: int, largest: int, tiles: int
) -> int:
    """Return the batch size with the least time per tile, among those that need little padding.

    On a CPU its scores must be bit-identical to those of the default batch, so that maps do not
    depend on the timing. On a GPU, where kernels differ, hardly any batch would pass this test.

    Args:
        infer: The model.
        tile: (C, T, T) of the scene, on the device.
        default: Batch size for scenes too small for trials.
        largest: Largest batch size.
        tiles: Number of tiles of the scene.
    """
    default = even_batch(tiles, default, largest)
    powers = (2**power for power in range(largest.bit_length()))
    candidates = sorted({even_batch(tiles, power) for power in powers} - {default})
    if ROUNDS * (sum(candidates) + default) > PROBE_FRACTION * tiles:
        return default
    try:
        expected = infer(_repeat(tile, default))[0].clone()
        best, fastest = default, _seconds(infer, tile, default) / default
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return default  # the pipeline halves it
    for batch in candidates:
        try:
            same = torch.equal(infer(_repeat(tile, batch))[0], expected)
            seconds = _seconds(infer, tile, batch) / batch
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if seconds < MIN_SPEEDUP * fastest and (same or tile.device.type != "cpu"):
            best, fastest = batch, seconds
        if _full(tile.device):
            break
    return best


def _repeat(tile: Tensor, batch: int) -> Tensor:
    return as_signed(tile)[None].repeat(batch, 1, 1, 1).view(tile.dtype)


def _seconds(infer: Callable[[Tensor], Tensor], tile: Tensor, batch: int) -> float:
    seconds = []
    for _ in range(ROUNDS):
        tiles = _repeat(tile, batch)
        started = time.perf_counter()
        infer(tiles)[0, 0, 0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _full(device: torch.device) -> bool:
    """Return whether twice the batch would exceed `MEMORY_FRACTION` of a GPU."""
    if device.type != "cuda":
        return False
    _, memory = torch.cuda.mem_get_info(device)
    return 2 * torch.cuda.max_memory_allocated(device) > MEMORY_FRACTION * memory
