"""Masked autoencoders (He et al., 2022): encoders only. Their licence is CC-BY-NC-4.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rsseg_cli.backbones._resize import BARE, Positions
from rsseg_cli.backbones._timm import Size
from rsseg_cli.backbones.vit import Vit


class Mae(Vit):
    """Plain blocks without layer scale; sin-cos positions kept as a parameter."""

    sizes: ClassVar[Mapping[str, Size]] = {
        "base": Size("vit_base_patch16_224.mae", patch=16),
        "large": Size("vit_large_patch16_224.mae", patch=16),
        "huge": Size("vit_huge_patch14_224.mae", patch=14),
    }

    def authors_resize(self) -> Positions:
        """The authors' code takes bicubic positions as they are."""
        return BARE
