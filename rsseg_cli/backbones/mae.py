"""Masked autoencoders (He et al., 2022): encoders only. Their licence is CC-BY-NC-4.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rsseg_cli.backbones._resize import BARE, Positions
from rsseg_cli.backbones._timm import ModelSize
from rsseg_cli.backbones.vit import Vit


class Mae(Vit):
    """Plain blocks without layer scale; sin-cos positions kept as a parameter."""

    sizes: ClassVar[Mapping[str, ModelSize]] = {
        "base": ModelSize("vit_base_patch16_224.mae", patch=16),
        "large": ModelSize("vit_large_patch16_224.mae", patch=16),
        "huge": ModelSize("vit_huge_patch14_224.mae", patch=14),
    }

    def authors_resize(self) -> Positions:
        """The authors' code takes bicubic positions as they are."""
        return BARE
