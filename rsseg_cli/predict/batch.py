"""Choice of the batch size: fast, within memory, and with little padding."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from rsseg_cli.predict.tta import as_signed

PROBE_SHARE = 0.02
"""Fraction of the work that trials may take; smaller scenes use the usual batch."""
GAIN = 0.97
"""A batch is better if its time per tile is below this fraction of the best so far."""
FAR = 0.01
"""Cost of half or twice the usual batch, as a fraction of the tiles that padding would add."""
ROUNDS = 2
"""Repetitions of each timing; the fastest counts."""
FILL = 0.8
"""Fraction of the device's memory that a batch may use."""


def even_batch(tiles: int, usual: int, most: int | None = None) -> int:
    """Choose the batch near the usual one whose last batch needs least padding.

    All batches have one shape: kernels differ between shapes, and with them the last bits of
    scores. The distance from the usual batch counts as a cost, too.

    Args:
        tiles: Number of tiles.
        usual: Usual batch; at least half of it is used.
        most: Largest batch; `usual` when None.
    """
    most = max(usual, most or 0)
    if tiles <= most:
        return tiles

    def cost(batch: int) -> float:
        padded = -(-tiles // batch) * batch
        return padded * (1 + FAR * (max(usual / batch, batch / usual) - 1))

    return min(range(most, -(-usual // 2) - 1, -1), key=cost)


def fastest_batch(
    infer: Callable[[Tensor], Tensor], tile: Tensor, usual: int, most: int, tiles: int
) -> int:
    """Find the batch with the least time per tile, among those that need little padding.

    On the CPU a batch must give the scores of the usual one bit by bit, so that maps do not depend
    on the timing. On other devices kernels differ so much that hardly any batch would be left.

    Args:
        infer: The model.
        tile: (C, T, T) of the scene, on the device.
        usual: Batch for scenes too small for trials.
        most: Largest batch.
        tiles: Number of tiles of the scene.
    """
    usual = even_batch(tiles, usual, most)
    powers = (2**power for power in range(most.bit_length()))
    candidates = sorted({even_batch(tiles, power) for power in powers} - {usual})
    if ROUNDS * (sum(candidates) + usual) > PROBE_SHARE * tiles:
        return usual
    try:
        expected = infer(_repeat(tile, usual))[0].clone()
        best, fastest = usual, _seconds(infer, tile, usual) / usual
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return usual  # the pipeline halves it
    for batch in candidates:
        try:
            same = torch.equal(infer(_repeat(tile, batch))[0], expected)
            seconds = _seconds(infer, tile, batch) / batch
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if seconds < GAIN * fastest and (same or tile.device.type != "cpu"):
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
    """Return whether twice the batch would use too much of a GPU's memory."""
    if device.type != "cuda":
        return False
    _, memory = torch.cuda.mem_get_info(device)
    return 2 * torch.cuda.max_memory_allocated(device) > FILL * memory
