"""EVA-02 (Fang et al., 2024) as pretrained by masked image modelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rsseg_cli.backbones._eva import EvaBackbone
from rsseg_cli.backbones._resize import PLAIN, PositionRule
from rsseg_cli.backbones._timm import ModelSize


class Eva02(EvaBackbone):
    """Blocks with rotary and absolute positions, separate queries, keys and values, gated MLPs."""

    sizes: ClassVar[Mapping[str, ModelSize]] = {
        "tiny": ModelSize("eva02_tiny_patch14_224.mim_in22k", patch=14),
        "small": ModelSize("eva02_small_patch14_224.mim_in22k", patch=14),
        "base": ModelSize("eva02_base_patch14_224.mim_in22k", patch=14),
        "large": ModelSize("eva02_large_patch14_224.mim_m38m", patch=14),
    }

    def authors_resize(self) -> PositionRule:
        """Return the authors' rule."""
        return PLAIN
