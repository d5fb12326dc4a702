"""Kernels and statistics for RGB, fitted to other bands."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from timm.models import adapt_input_conv
from torch import Tensor

from rsseg_cli.backbones._band_adaptation import (
    InputStatistics,
    KernelAdaptation,
    adapt_kernel,
    mixing_matrix,
    native_statistics,
    uses_native_statistics,
)
from rsseg_cli.contract import Bands
from rsseg_cli.errors import RssegError

RED, GREEN, BLUE, EVEN = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1 / 3, 1 / 3, 1 / 3)


def bands(*wavelengths: float | None, dtype: str = "uint16") -> Bands:
    count = len(wavelengths)
    return Bands(
        names=tuple(f"band{index}" for index in range(count)),
        wavelengths_nm=wavelengths,
        mean=tuple(100.0 + 10 * index for index in range(count)),
        std=tuple(30.0 + index for index in range(count)),
        dtype=dtype,
    )


def kernel() -> Tensor:
    return torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("wavelengths", "rows"),
    [
        ((660.0, 560.0, 485.0), [RED, GREEN, BLUE]),
        ((490.0, 555.0, 665.0), [BLUE, GREEN, RED]),
        ((842.0, 665.0, 560.0, 490.0), [EVEN, RED, GREEN, BLUE]),
        ((660.0, 610.0, 560.0, 485.0), [RED, (0.5, 0.5, 0), GREEN, BLUE]),
        ((443.0, 490.0, 560.0, 665.0, 705.0), [BLUE, BLUE, GREEN, RED, EVEN]),
        ((None, 560.0, 1610.0, 2190.0), [EVEN, GREEN, EVEN, EVEN]),
        ((842.0, 660.0, 560.0), [EVEN, RED, GREEN]),
        ((535.0,), [GREEN]),
    ],
)
def test_each_band_takes_its_colour(
    wavelengths: Sequence[float | None], rows: list[Sequence[float]]
) -> None:
    torch.testing.assert_close(
        mixing_matrix(bands(*wavelengths), "interpolate"), torch.tensor(rows, dtype=torch.float32)
    )


def test_red_green_blue_keep_their_kernels_bit_for_bit() -> None:
    rgb = kernel()
    assert torch.equal(
        adapt_kernel(rgb, mixing_matrix(bands(660.0, 560.0, 485.0), "interpolate")), rgb
    )
    turned = adapt_kernel(rgb, mixing_matrix(bands(485.0, 842.0, 660.0, 560.0), "interpolate"))
    assert torch.equal(turned[:, [2, 3, 0]], rgb * 0.75)
    torch.testing.assert_close(turned[:, 1], rgb.mean(1) * 0.75)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_cycle_is_timms_rule(count: int) -> None:
    found = adapt_kernel(kernel(), mixing_matrix(bands(*[None] * count), "cycle"))
    torch.testing.assert_close(found, adapt_input_conv(count, kernel()))


@pytest.mark.parametrize(
    ("adapt", "wavelengths"),
    [
        ("interpolate", (None,) * 5),
        ("interpolate", (842.0, 2190.0)),
        ("interpolate", (485.0, 560.0, 660.0)),
        ("mean", (None,) * 5),
        ("mean", (560.0,)),
    ],
)
def test_bands_that_are_all_the_same_answer_as_grey_did(
    adapt: KernelAdaptation, wavelengths: Sequence[float | None]
) -> None:
    found = adapt_kernel(kernel(), mixing_matrix(bands(*wavelengths), adapt))
    torch.testing.assert_close(found.sum(1), kernel().sum(1))


def test_a_half_precision_kernel_stays_one() -> None:
    assert (
        adapt_kernel(kernel().half(), mixing_matrix(bands(None, None), "mean")).dtype
        == torch.float16
    )


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_native_statistics_whatever_the_order() -> None:
    """Standardise and restate: the same as (x / 255 - mean) / std, written out."""
    order = bands(485.0, 660.0, 560.0, dtype="uint8")
    stored = torch.randint(0, 256, (1, 3, 5, 5)).float()
    data_mean, data_std = torch.tensor(order.mean), torch.tensor(order.std)
    standardised = (stored - data_mean[:, None, None]) / data_std[:, None, None]
    gain, offset = native_statistics(order, mixing_matrix(order, "interpolate"), MEAN, STD)
    colours = [2, 0, 1]
    expected = torch.stack(
        [
            (stored[:, band] / 255 - MEAN[colour]) / STD[colour]
            for band, colour in enumerate(colours)
        ],
        dim=1,
    )
    torch.testing.assert_close(standardised * gain + offset, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "wavelengths", "pretrained", "stats", "expected"),
    [
        ("uint8", (660.0, 560.0, 485.0), True, "auto", True),
        ("uint8", (485.0, 560.0, 660.0), True, "auto", True),
        ("uint8", (660.0, 560.0, 485.0), False, "auto", False),
        ("uint8", (660.0, 560.0, 485.0), True, "data", False),
        ("uint8", (842.0, 660.0, 560.0), True, "auto", False),
        ("uint8", (842.0, 660.0, 560.0, 485.0), True, "auto", False),
        ("uint8", (842.0, 660.0, 560.0, 485.0), True, "native", True),
        ("uint8", (None, None, None), True, "auto", False),
        ("uint16", (660.0, 560.0, 485.0), True, "auto", False),
    ],
)
def test_when_native_statistics_are_used(
    dtype: str,
    wavelengths: Sequence[float | None],
    pretrained: bool,
    stats: InputStatistics,
    expected: bool,
) -> None:
    assert (
        uses_native_statistics(bands(*wavelengths, dtype=dtype), stats, pretrained=pretrained)
        is expected
    )


def test_native_statistics_of_other_than_8_bits() -> None:
    with pytest.raises(RssegError, match="these are uint16"):
        uses_native_statistics(bands(660.0, 560.0, 485.0), "native", pretrained=True)
