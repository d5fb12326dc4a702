"""Image encoders of CLIP (Radford et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rsseg_cli.backbones._timm import ModelSize
from rsseg_cli.backbones.vit import Vit


class Clip(Vit):
    """Plain blocks after a first norm, with OpenAI's activation x * sigmoid(1.702 x).

    Only timm's `quickgelu` names have it; the other names load the same tensors with another one.
    """

    sizes: ClassVar[Mapping[str, ModelSize]] = {
        "base": ModelSize("vit_base_patch16_clip_quickgelu_224.openai", patch=16),
        "large": ModelSize("vit_large_patch14_clip_quickgelu_224.openai", patch=14),
    }
