"""Uni-Perceiver's image encoder (Zhu et al. 2022, arXiv 2112.01522), the backbone of WEFT.

A plain ViT-L/16 with layer scales, without class token and final norm, whose embedded patches are
normalised before the first block. The weights are those that ViT-Adapter publishes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from rsseg_cli.backbones._resize import PLAIN, PositionRule
from rsseg_cli.backbones._timm import ModelSize
from rsseg_cli.backbones._weights import WeightsSource
from rsseg_cli.backbones.vit import Vit

FILE = "uni-perceiver-large-L24-H1024-224size-pretrained_converted.pth"
URL = f"https://github.com/czczup/ViT-Adapter/releases/download/v0.3.1/{FILE}"

BLOCK = {
    "self_attn.in_proj.": "attn.qkv.",
    "self_attn.out_proj.": "attn.proj.",
    "linear1.": "mlp.fc1.",
    "linear2.": "mlp.fc2.",
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "gamma_1": "ls1.gamma",
    "gamma_2": "ls2.gamma",
}
"""Published names inside a block, and those of timm."""
EMBEDDING = "visual_embed.patch_embed."
EMBEDDING_NORM = "visual_embed.embeddings_norm."
TEXT = "token_embed."
"""Prefix of the text encoder, which some versions of the file contain."""


class Uniperceiver(Vit):
    """timm's blocks behind a normalised patch embedding, without a prefix."""

    default_resize = "authors"
    sizes: ClassVar[Mapping[str, ModelSize]] = {
        "large": ModelSize(
            "vit_large_patch16_224.mae",  # as trained: ImageNet's mean and std
            patch=16,
            source=WeightsSource(FILE, license="Apache-2.0", url=URL),
            changes={
                "class_token": False,
                "global_pool": "",
                "pre_norm": True,
                "final_norm": False,
                "init_values": 1.0,
                "norm_layer": partial(nn.LayerNorm, eps=1.0e-5),
            },
        ),
    }

    def authors_resize(self) -> PositionRule:
        """Return the authors' rule."""
        return PLAIN

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename published tensors, and combine the embeddings.

        The file has spatial positions and, for videos, temporal ones, of which an image uses the
        first. The bias of the patch embedding is added to the positions, as timm has no bias before
        a norm. In files of models without layer scales the scales are set to 1.
        """
        source = {key: t for key, t in tensors.items() if not key.startswith(TEXT)}
        spatial = source.pop(f"{EMBEDDING}spatial_pos_embed.weight")
        temporal = source.pop(f"{EMBEDDING}temporal_pos_embed.weight")
        bias = source.pop(f"{EMBEDDING}proj.bias")
        translated = {_renamed(key): tensor for key, tensor in source.items()}
        translated["pos_embed"] = (spatial + temporal[0] + bias)[None]
        for block in range(len(self.model.blocks)):
            for scale in ("ls1", "ls2"):
                translated.setdefault(f"blocks.{block}.{scale}.gamma", torch.ones_like(bias))
        return super().translate(translated)


def _renamed(key: str) -> str:
    """Return timm's name of a tensor; an unknown name is returned as it is."""
    inside = re.fullmatch(r"layers\.(\d+)\.(.+)", key)
    if inside is None:
        key = key.replace(f"{EMBEDDING}proj.", "patch_embed.proj.")
        return key.replace(EMBEDDING_NORM, "norm_pre.")
    block, name = inside.groups()
    for published, in_timm in BLOCK.items():
        name = name.replace(published, in_timm) if name.startswith(published) else name
    return f"blocks.{block}.{name}"
