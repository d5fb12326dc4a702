"""Ranking hundreds of millions of scores: exact, in little memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rsseg_cli.methods._fisher import ranking


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("cuts", [[1], [5, 100, 101, 900], [1000], list(range(1, 256))])
def test_levels_are_those_of_a_full_sort(
    ties: bool, cuts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "CHUNK", 64)
    generator = torch.Generator().manual_seed(len(cuts))
    scores = [torch.randn(size, generator=generator).mul(9).exp() for size in (700, 1, 399)]
    if ties:
        scores = [one.log().round().clamp(min=0) for one in scores]
        scores[0][3] = -0.0
    levels = [torch.zeros(len(one), dtype=torch.uint8) for one in scores]
    ranking.levels(scores, cuts, levels)
    flat = torch.cat(scores)
    order = flat.argsort(descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(0, order, torch.arange(1, len(flat) + 1))
    expected = torch.searchsorted(torch.tensor(cuts), ranks)
    expected[expected == len(cuts)] = 255
    assert torch.equal(torch.cat(levels).long(), expected)
    assert ranking.value_at(scores, 17) == flat[order[16]]


def test_median_above_zero() -> None:
    scores = torch.cat([torch.zeros(100), torch.arange(1.0, 52.0)])
    assert ranking.median_above_zero([scores[:120], scores[120:]]) == 26
    assert ranking.median_above_zero([torch.zeros(9)]) == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are Linux's to tell")
def test_ranking_takes_a_byte_per_element_and_little_else() -> None:
    def memory(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))

    generator = torch.Generator().manual_seed(0)
    # A quarter of a ViT-L's: one tensor, many times. The rest of the memory does not grow.
    scores = [torch.randn(2**22, generator=generator).mul_(3).exp_()] * 16
    count, most = 16 * 2**22, 3_687_000
    cuts = [round(most * (20 + 0.8 * level) / 100) for level in range(101)]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    levels = [torch.empty(2**22, dtype=torch.uint8) for _ in scores]
    ranking.levels(scores, cuts, levels)
    besides = memory("VmHWM") - before - count
    assert besides < 96 * 2**20
    assert 1 + besides / 276_824_064 < 1.5
    assert sum(int((one <= 50).sum()) for one in levels) == cuts[50]
    assert sum(int((one != 255).sum()) for one in levels) == cuts[-1]
