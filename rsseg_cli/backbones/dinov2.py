"""DINOv2 (Oquab et al., 2024), without and with registers (Darcet et al., 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rsseg_cli.backbones._resize import TIMM, PositionRule
from rsseg_cli.backbones._timm import ModelSize
from rsseg_cli.backbones.vit import Vit


class Dinov2(Vit):
    """Plain blocks with layer scale; `_reg` sizes have four registers besides the class token."""

    sizes: ClassVar[Mapping[str, ModelSize]] = {
        "small": ModelSize("vit_small_patch14_dinov2.lvd142m", patch=14),
        "base": ModelSize("vit_base_patch14_dinov2.lvd142m", patch=14),
        "large": ModelSize("vit_large_patch14_dinov2.lvd142m", patch=14),
        "small_reg": ModelSize("vit_small_patch14_reg4_dinov2.lvd142m", patch=14),
        "base_reg": ModelSize("vit_base_patch14_reg4_dinov2.lvd142m", patch=14),
        "large_reg": ModelSize("vit_large_patch14_reg4_dinov2.lvd142m", patch=14),
    }

    def authors_resize(self) -> PositionRule:
        """Return the authors' rule, which differs for models with registers."""
        return PositionRule(antialias=False, offset=0.1) if self.model.reg_token is None else TIMM
