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
"""A larger batch is taken when its time per tile is below this share of a smaller one's."""
ROUNDS = 2
"""How often each batch is timed; the fastest counts."""
FILL = 0.8
"""Share of the device's memory that a batch may take."""


def even_batch(tiles: int, most: int) -> int:
    """Choose the batch of at most `most` tiles that leaves least to pad in the last one.

    All batches have one shape: kernels differ between shapes, and with them the last bits of
    scores. At least three quarters of `most` are used.
    """
    if tiles <= most:
        return tiles
    candidates = range(most, -(-most * 3 // 4) - 1, -1)
    return min(candidates, key=lambda batch: -(-tiles // batch) * batch)


def fastest_batch(
    infer: Callable[[Tensor], Tensor], tile: Tensor, usual: int, most: int, tiles: int
) -> int:
    """Find the batch with which a tile takes the least time.

    Where the model works on the CPU only batches count whose scores equal those of the usual one
    bit by bit, so that maps do not depend on what was found. On other devices kernels differ so
    much that hardly any would be left.

    Args:
        infer: The model.
        tile: (C, T, T) of the scene, on the device.
        usual: What is taken without looking.
        most: Bound.
        tiles: How many tiles there are to do.
    """
    candidates = [2**power for power in range(most.bit_length()) if 2**power <= most]
    if ROUNDS * (sum(candidates) + usual) > PROBE_SHARE * tiles:
        return usual
    expected = infer(_repeat(tile, usual))[0].clone()
    best, fastest = usual, _seconds(infer, tile, usual) / usual
    for batch in candidates:
        try:
            same = torch.equal(infer(_repeat(tile, batch))[0], expected)
            seconds = _seconds(infer, tile, batch) / batch
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if tile.device.type == "cpu" and not same:
            continue
        if seconds < fastest * (GAIN if batch > best else 1 / GAIN):
            best, fastest = batch, min(seconds, fastest)
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
