"""How many tiles the model gets at a time: what is fastest, fits, and leaves little to pad."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from rsseg_cli.predict.turns import as_signed

PROBE_SHARE = 0.02
"""Share of the work that may go into finding the best batch; with less to do none is looked for."""
GAIN = 0.97
"""A batch is taken when its time per tile is below this share of the best so far."""
FAR = 0.01
"""What half or twice the wanted batch costs: padding of such a share is worth as much."""
ROUNDS = 2
"""How often each batch is timed; the fastest counts."""
FILL = 0.8
"""Share of the device's memory that a batch may take."""


def even_batch(tiles: int, wanted: int, most: int | None = None) -> int:
    """Choose the batch near the wanted one that leaves least to pad in the last one.

    All batches have one shape: kernels differ between shapes, and with them the last bits of
    scores. Being far from what is wanted counts as a cost, too.

    Args:
        tiles: How many there are.
        wanted: Batch; at least half of it is used.
        most: Bound; `wanted` when None.
    """
    most = max(wanted, most or 0)
    if tiles <= most:
        return tiles

    def cost(batch: int) -> float:
        padded = -(-tiles // batch) * batch
        return padded * (1 + FAR * (max(wanted / batch, batch / wanted) - 1))

    return min(range(most, -(-wanted // 2) - 1, -1), key=cost)


def fastest_batch(
    infer: Callable[[Tensor], Tensor], tile: Tensor, wanted: int, most: int, tiles: int
) -> int:
    """Find the batch with which a tile takes the least time, among those that leave little to pad.

    Where the model works on the CPU only batches count whose scores equal those of the usual one
    bit by bit, so that maps do not depend on what was found. On other devices kernels differ so
    much that hardly any would be left.

    Args:
        infer: The model.
        tile: (C, T, T) of the scene, on the device.
        wanted: What is taken, or a number near it, where looking does not pay.
        most: Bound.
        tiles: How many tiles there are to do.
    """
    usual = even_batch(tiles, wanted, most)
    powers = (2**power for power in range(most.bit_length()))
    candidates = sorted({even_batch(tiles, power) for power in powers} - {usual})
    if ROUNDS * (sum(candidates) + usual) > PROBE_SHARE * tiles:
        return usual
    try:
        expected = infer(_repeat(tile, usual))[0].clone()
        best, fastest = usual, _seconds(infer, tile, usual) / usual
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return usual  # whoever maps with it takes fewer at a time
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
        given = _repeat(tile, batch)
        started = time.perf_counter()
        infer(given)[0, 0, 0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _full(device: torch.device) -> bool:
    """Tell whether twice as large a batch would take too much of a GPU's memory."""
    if device.type != "cuda":
        return False
    _, there = torch.cuda.mem_get_info(device)
    return 2 * torch.cuda.max_memory_allocated(device) > FILL * there
