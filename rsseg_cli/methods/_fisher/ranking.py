"""Exact ranking of hundreds of millions of scores in bounded memory, without sorting.

The bits of non-negative floats grow with the number. The upper 16 of the 31 bits (exponent and
seven or eight bits of the mantissa) are 65,536 bins of nearly equal width in the logarithm. One
pass counts them; a second pass counts the lower 15 bits inside the few bins that contain a cut.
The value at every cut is then known exactly. Vectors are read in chunks; results depend neither on
the chunks nor on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

NEVER = 255
"""Level of elements outside all cuts."""
LOW = 15
BINS, FINE = 1 << 16, 1 << LOW
CHUNK = 1 << 20


def levels(scores: Sequence[Tensor], cuts: Sequence[int], into: Iterable[Tensor]) -> None:
    """Write the index of the first cut that includes each element.

    Args:
        scores: Vectors of non-negative float32 numbers, ranked together.
        cuts: At most 255 ascending sizes: cut l includes the `cuts[l]` highest scores. Of equal
            scores the one in the earlier vector, then at the lower index, is ranked higher.
        into: uint8 vectors of the same lengths, filled with l, or `NEVER`.
    """
    values, above = _at_ranks(scores, cuts)
    device = scores[0].device
    thresholds, first = torch.unique(values, return_inverse=True)  # ascending
    higher = torch.zeros_like(thresholds).scatter_(0, first, above)
    # Scores between two thresholds belong to the first cut with a lower value.
    between = [NEVER, *((values <= bound).nonzero()[0, 0].item() for bound in thresholds)]
    level_between = torch.tensor(between, dtype=torch.uint8, device=device)
    bounds = thresholds.to(device, torch.int32)
    sizes = torch.tensor(list(cuts), device=device)
    higher = higher.to(device)  # grows by the ties that were counted
    last = len(bounds) - 1
    for chunk, out in zip(_chunks(scores), _chunks(into), strict=True):
        bits = _bits(chunk)
        inside = (bits >= bounds[0]).nonzero()[:, 0]  # few: the largest cut is a small fraction
        bits = bits[inside]
        bins = torch.bucketize(bits, bounds)
        out.fill_(NEVER)
        out[inside] = level_between[bins]
        ties = (bounds[bins.clamp_(max=last)] == bits).nonzero()[:, 0]
        groups, order = bins[ties].sort(stable=True)
        count = groups.bincount(minlength=last + 1)
        starts = count.cumsum(0) - count
        ranks = torch.arange(1, len(ties) + 1, device=device) + (higher - starts)[groups]
        level = torch.searchsorted(sizes, ranks)
        level[level == len(sizes)] = NEVER
        out[inside[ties[order]]] = level.to(torch.uint8)
        higher += count


def value_at(scores: Sequence[Tensor], rank: int) -> float:
    """Return the score at a rank, 1 being the highest."""
    values, _ = _at_ranks(scores, [rank])
    return values.to(torch.int32).view(torch.float32).item()


def median_above_zero(scores: Sequence[Tensor]) -> float:
    """Return the median of the positive scores (of two middle ones the higher); 0 without any."""
    positive = sum(int((chunk > 0).sum()) for chunk in _chunks(scores))
    return value_at(scores, (positive + 1) // 2) if positive else 0.0


def _chunks(vectors: Iterable[Tensor]) -> Iterator[Tensor]:
    for vector in vectors:
        yield from torch.split(vector, CHUNK)


def _bits(chunk: Tensor) -> Tensor:
    return chunk.view(torch.int32) & 0x7FFFFFFF  # -0.0 is 0


def _histogram(scores: Sequence[Tensor]) -> Tensor:
    """Count the scores of each bin (65,536,), on the CPU."""
    counts = torch.zeros(BINS, dtype=torch.int64, device=scores[0].device)
    for chunk in _chunks(scores):
        counts += (_bits(chunk) >> LOW).bincount(minlength=BINS)
    return counts.cpu()


def _at_ranks(scores: Sequence[Tensor], ranks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the bits of the scores at ranks (from 1), and the counts of higher scores (R,)."""
    device, targets = scores[0].device, torch.tensor(list(ranks))
    bins, above = _descend(_histogram(scores), targets)
    opened, slots = torch.unique(bins, return_inverse=True)
    slot_of = torch.full((BINS,), -1, device=device)
    slot_of[opened.to(device)] = torch.arange(len(opened), device=device)
    lowest = opened[0].item() << LOW
    counts = torch.zeros(len(opened) * FINE, dtype=torch.int64, device=device)
    for chunk in _chunks(scores):
        bits = _bits(chunk)
        bits = bits[bits >= lowest]
        slot = slot_of[bits >> LOW]
        in_slot = slot >= 0
        fine = slot[in_slot] * FINE + (bits[in_slot] & (FINE - 1))
        counts.index_add_(0, fine, torch.ones_like(fine))
    table = counts.cpu().view(-1, FINE)
    pairs = zip(slots.tolist(), targets - above, strict=True)
    fine_bins, above_in_bin = zip(
        *(_descend(table[s], rank[None]) for s, rank in pairs), strict=True
    )
    return (bins << LOW) | torch.cat(fine_bins), above + torch.cat(above_in_bin)


def _descend(counts: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bin of each rank counted from the highest bin, and the count above that bin."""
    cumulated = counts.flip(0).cumsum(0)
    index = torch.searchsorted(cumulated, ranks)
    bins = len(counts) - 1 - index
    return bins, cumulated[index] - counts[bins]
