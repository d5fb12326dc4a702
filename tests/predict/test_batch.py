"""Batches: little to pad, and the fastest that changes no bit."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rsseg_cli.predict.batch import even_batch, fastest_batch

TILE = torch.arange(2 * 4 * 4, dtype=torch.uint8).view(2, 4, 4)


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(0, 64))
def test_even_batches_pad_no_more_than_the_wanted_one(tiles: int, wanted: int, more: int) -> None:
    batch = even_batch(tiles, wanted, wanted + more)
    assert 1 <= batch <= min(tiles, wanted + more)
    assert batch >= min(tiles, -(-wanted // 2))
    assert -(-tiles // batch) * batch <= -(-tiles // wanted) * wanted


@pytest.mark.parametrize(
    ("tiles", "wanted", "most", "batch"),
    [(121, 8, None, 4), (121, 8, 16, 11), (128, 8, 16, 8), (100_000, 8, 16, 8), (3, 8, None, 3)],
)
def test_even_batches(tiles: int, wanted: int, most: int | None, batch: int) -> None:
    assert even_batch(tiles, wanted, most) == batch


def taking(seconds: Callable[[int], float], seen: list[int]) -> Callable[[Tensor], Tensor]:
    """Make a model that takes so long for a batch."""

    def model(tiles: Tensor) -> Tensor:
        seen.append(len(tiles))
        time.sleep(seconds(len(tiles)))
        return tiles.float()

    return model


def test_the_fastest_batch_is_found() -> None:
    seen: list[int] = []
    model = taking(lambda batch: 0.0002 * batch + (0.03 if batch != 4 else 0.001), seen)
    assert fastest_batch(model, TILE, 8, 16, 8192) == 4
    assert set(seen) == {1, 2, 4, 8, 16}


def test_nothing_is_tried_where_it_would_not_pay() -> None:
    seen: list[int] = []
    assert fastest_batch(taking(lambda batch: 0.0, seen), TILE, 8, 16, 800) == 8
    assert not seen


def test_a_batch_that_changes_bits_is_not_taken_on_the_cpu() -> None:
    def model(tiles: Tensor) -> Tensor:
        time.sleep(0.0 if len(tiles) == 4 else 0.01 * len(tiles))
        return tiles + (1e-7 if len(tiles) == 4 else 0.0)

    assert fastest_batch(model, torch.zeros(1, 4, 4), 8, 8, 8192) != 4


def test_a_batch_that_does_not_fit_ends_the_search() -> None:
    def model(tiles: Tensor) -> Tensor:
        if len(tiles) > 8:
            raise torch.OutOfMemoryError("too much")
        time.sleep(0.01)
        return tiles.float()

    assert fastest_batch(model, TILE, 4, 64, 65_536) == 8
    assert fastest_batch(model, TILE, 16, 64, 65_536) == 16  # to be halved by who maps with it
