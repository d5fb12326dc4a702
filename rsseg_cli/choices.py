"""Values that options and settings choose among; nothing heavy is imported to name them."""

from __future__ import annotations

from typing import Literal

Format = Literal["auto", "bf16", "fp16", "fp32"]
"""Number format of matrix products. `auto` is bf16 or fp16 on a GPU and fp32 on a CPU."""
TTA = Literal["flips", "d4"]
"""Views of test-time augmentation: 4 mirror images, or all 8 symmetries of the square."""
Confidence = Literal["max", "margin", "entropy"]
"""Measure of confidence, from 0 to 1 for all three; see `predict.map_layers.confidence`."""
RasterFormat = Literal["COG", "GTiff"]
"""GDAL driver that writes maps."""
