"""Bands of benchmarks whose values are random."""

from __future__ import annotations

from rsseg_cli.contract import Bands

BANDS = Bands(
    names=("red", "green", "blue"),
    wavelengths_nm=(660.0, 560.0, 485.0),
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    dtype="uint8",
)
