"""Encoders of masked autoencoders (He et al., 2022), with the licence CC-BY-NC-4.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rsseg_cli.backbones._resize import PLAIN, PositionRule
from rsseg_cli.backbones._timm import ModelSize
from rsseg_cli.backbones.vit import Vit


class Mae(Vit):
    """Plain blocks without layer scale, with sine-cosine positions."""

    sizes: ClassVar[Mapping[str, ModelSize]] = {
        "base": ModelSize("vit_base_patch16_224.mae", patch=16),
        "large": ModelSize("vit_large_patch16_224.mae", patch=16),
        "huge": ModelSize("vit_huge_patch14_224.mae", patch=14),
    }

    def authors_resize(self) -> PositionRule:
        """Return the authors' rule."""
        return PLAIN
