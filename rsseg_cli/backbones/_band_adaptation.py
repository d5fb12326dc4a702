"""Fits kernels and statistics made for red, green and blue to whatever bands an image has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rsseg_cli.contract import Bands
from rsseg_cli.errors import RssegError

KernelAdaptation = Literal["interpolate", "cycle", "mean"]
InputStatistics = Literal["auto", "data", "native"]

RGB_NM = (660.0, 560.0, 485.0)
"""Centres of red, green and blue where an image has no such band."""
VISIBLE_NM = (400.0, 700.0)
EVEN = (1 / 3, 1 / 3, 1 / 3)


def mixing(bands: Bands, adapt: KernelAdaptation) -> Tensor:
    """Return how much of red, green and blue each band takes: (C, 3), rows summing to 1.

    `interpolate` goes by wavelength: an image's red, green and blue bands keep their own, visible
    bands between them are interpolated linearly, all others take the mean. `cycle` is timm's rule
    (band i takes channel i mod 3, a single band all three), `mean` makes no difference at all.
    """
    rows: list[Sequence[float]]
    if adapt == "mean" or (adapt == "cycle" and len(bands) == 1):
        rows = [EVEN] * len(bands)
    elif adapt == "cycle":
        rows = [np.eye(3)[index % 3].tolist() for index in range(len(bands))]
    else:
        rows = [_by_wavelength(centre, _anchors(bands)) for centre in bands.wavelengths_nm]
    return torch.tensor(rows, dtype=torch.float32)


def _anchors(bands: Bands) -> list[float]:
    """Return the centres of an image's red, green and blue bands, in that order."""
    found = [bands.nearest(centre, tolerance_nm=45.0) for centre in RGB_NM]
    centres = [None if index is None else bands.wavelengths_nm[index] for index in found]
    return [default if own is None else own for own, default in zip(centres, RGB_NM, strict=True)]


def _by_wavelength(centre: float | None, anchors: list[float]) -> Sequence[float]:
    if centre is None or not VISIBLE_NM[0] <= centre <= VISIBLE_NM[1]:
        return EVEN
    rising = anchors[::-1]
    blue, green, red = (float(np.interp(centre, rising, one)) for one in np.eye(3))
    return red, green, blue


def adapt_kernel(kernel: Tensor, mix: Tensor) -> Tensor:
    """Turn a patch kernel (D, 3, p, p) for RGB into one (D, C, p, p) for the bands of `mix` (C, 3).

    The whole kernel is scaled by 3/C, so that C equal bands answer as three did.
    """
    adapted = torch.einsum("dipq,ci->dcpq", kernel.float(), mix.to(kernel.device))
    return (adapted * (3 / len(mix))).to(kernel.dtype)


def native(bands: Bands, stats: InputStatistics, *, pretrained: bool) -> bool:
    """Decide whether images are put into the statistics that the weights were trained with.

    Raises:
        RssegError: `stats` is `native` and the data are not 8-bit.
    """
    if stats == "native" and bands.dtype != "uint8":
        raise RssegError(
            f"stats native is for 8-bit images, these are {bands.dtype}",
            where="backbone.stats",
            fix="backbone.stats data (or auto)",
        )
    return stats == "native" or (
        stats == "auto"
        and pretrained
        and bands.dtype == "uint8"
        and len(bands) == 3
        and bands.rgb() is not None
    )


def restatement(
    bands: Bands, mix: Tensor, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return gain and offset, each (C, 1, 1), from standardised 8-bit data to native statistics.

    Args:
        bands: Mean and std of the data, in 0..255.
        mix: How the bands relate to red, green and blue, (C, 3).
        mean: The weights' mean of red, green and blue, in 0..1.
        std: Their standard deviation.
    """
    native_mean = mix @ torch.tensor(mean, dtype=torch.float32)
    native_std = mix @ torch.tensor(std, dtype=torch.float32)
    data_mean, data_std = torch.tensor(bands.mean) / 255, torch.tensor(bands.std) / 255
    gain, offset = data_std / native_std, (data_mean - native_mean) / native_std
    return gain[:, None, None], offset[:, None, None]
