"""Adapts patch kernels and input statistics of RGB models to the bands of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from rsseg_cli.contract import Bands
from rsseg_cli.errors import RssegError

KernelAdaptation = Literal["interpolate", "cycle", "mean"]
InputStatistics = Literal["auto", "data", "native"]

RGB_NM = (660.0, 560.0, 485.0)
"""Centres of red, green and blue for images without such a band."""
VISIBLE_NM = (400.0, 700.0)
EVEN = (1 / 3, 1 / 3, 1 / 3)


def mixing_matrix(bands: Bands, adapt: KernelAdaptation) -> Tensor:
    """Return the fractions of red, green and blue in each band: (C, 3), rows summing to 1.

    - `interpolate`: by wavelength. The image's red, green and blue bands keep their channel,
      visible bands between them are interpolated linearly, and all others use the mean.
    - `cycle`: timm's rule. Band i uses channel i mod 3, and a single band uses all three.
    - `mean`: all bands use the mean.
    """
    rows: list[Sequence[float]]
    if adapt == "mean" or (adapt == "cycle" and len(bands) == 1):
        rows = [EVEN] * len(bands)
    elif adapt == "cycle":
        rows = [np.eye(3)[index % 3].tolist() for index in range(len(bands))]
    else:
        rows = [_by_wavelength(centre, _rgb_centres(bands)) for centre in bands.wavelengths_nm]
    return torch.tensor(rows, dtype=torch.float32)


def _rgb_centres(bands: Bands) -> list[float]:
    """Return the centres of an image's red, green and blue bands, in that order."""
    indices = [bands.nearest(nominal, tolerance_nm=45.0) for nominal in RGB_NM]
    centres = [None if index is None else bands.wavelengths_nm[index] for index in indices]
    return [
        nominal if centre is None else centre
        for centre, nominal in zip(centres, RGB_NM, strict=True)
    ]


def _by_wavelength(centre: float | None, rgb_centres: list[float]) -> Sequence[float]:
    if centre is None or not VISIBLE_NM[0] <= centre <= VISIBLE_NM[1]:
        return EVEN
    rising = rgb_centres[::-1]
    blue, green, red = (float(np.interp(centre, rising, unit)) for unit in np.eye(3))
    return red, green, blue


def adapt_kernel(kernel: Tensor, mix: Tensor) -> Tensor:
    """Compute a patch kernel (D, C, p, p) for the bands of `mix` (C, 3) from that of RGB.

    The kernel is scaled by 3/C, so that C equal bands give the same output as three.
    """
    adapted = torch.einsum("dipq,ci->dcpq", kernel.float(), mix.to(kernel.device))
    return (adapted * (3 / len(mix))).to(kernel.dtype)


def uses_native_statistics(bands: Bands, stats: InputStatistics, *, pretrained: bool) -> bool:
    """Return whether images are converted to the statistics of the pretraining.

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


def native_statistics(
    bands: Bands, mix: Tensor, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return gain and offset, each (C, 1, 1), from standardised 8-bit data to native statistics.

    Args:
        bands: Mean and std of the data, in 0..255.
        mix: (C, 3), see `mixing_matrix`.
        mean: The pretraining's mean of red, green and blue, in 0..1.
        std: Their standard deviation.
    """
    native_mean = mix @ torch.tensor(mean, dtype=torch.float32)
    native_std = mix @ torch.tensor(std, dtype=torch.float32)
    data_mean, data_std = torch.tensor(bands.mean) / 255, torch.tensor(bands.std) / 255
    gain, offset = data_std / native_std, (data_mean - native_mean) / native_std
    return gain[:, None, None], offset[:, None, None]


class Affine(nn.Module):
    """x * gain + offset per band, with constants that are not part of the state dict."""

    gain: Tensor
    offset: Tensor

    def __init__(self, gain: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("gain", gain, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Apply to an image (B, C, H, W)."""
        return image * self.gain + self.offset
