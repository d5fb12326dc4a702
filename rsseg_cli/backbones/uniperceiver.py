"""Uni-Perceiver's image encoder (Zhu et al. 2022, arXiv 2112.01522), the backbone of WEFT.

A plain ViT-L/16 without class token whose embedded patches are normalised before the first block,
with layer scales and no norm at the end. The weights are those that ViT-Adapter gives away.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from rsseg_cli.backbones import _weights
from rsseg_cli.backbones._resize import BARE, Positions
from rsseg_cli.backbones._timm import ModelSize, TimmBackbone
from rsseg_cli.backbones.vit import Vit
from rsseg_cli.errors import RssegError

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
"""Names inside a block as published, and timm's."""
EMBEDDING = "visual_embed.patch_embed."
EMBEDDING_NORM = "visual_embed.embeddings_norm."
TEXT = "token_embed."
"""The encoder of words, which some versions of the file hold."""


class Uniperceiver(Vit):
    """timm's blocks, with an embedding of its own and no prefix."""

    default_resize = "authors"
    sizes: ClassVar[Mapping[str, ModelSize]] = {
        "large": ModelSize(
            "vit_large_patch16_224.mae",  # as trained: ImageNet's mean and std
            patch=16,
            home=_weights.WeightsSource(page=URL, file=FILE, license="Apache-2.0"),
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

    def authors_resize(self) -> Positions:
        """The authors' code takes bicubic positions as they are."""
        return BARE

    def _load(self, config: TimmBackbone.Config, size: ModelSize) -> tuple[str, str]:
        """Load the given file, or the one that ViT-Adapter published."""
        path = config.weights or fetch()
        return super()._load(config.model_copy(update={"weights": path}), size)

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors to timm's.

        The file's positions are a table for places and one for frames, of which an image is the
        first. The bias of the patches is added to the positions too: timm has none before a norm.
        Files without layer scales come from models without: their scales are 1.
        """
        source = {key: t for key, t in tensors.items() if not key.startswith(TEXT)}
        places = source.pop(f"{EMBEDDING}spatial_pos_embed.weight")
        frames = source.pop(f"{EMBEDDING}temporal_pos_embed.weight")
        bias = source.pop(f"{EMBEDDING}proj.bias")
        translated = {_renamed(key): tensor for key, tensor in source.items()}
        translated["pos_embed"] = (places + frames[0] + bias)[None]
        for block in range(len(self.model.blocks)):
            for scale in ("ls1", "ls2"):
                translated.setdefault(f"blocks.{block}.{scale}.gamma", torch.ones_like(bias))
        return super().translate(translated)


def _renamed(key: str) -> str:
    """Translate a name; an unknown one stays and is reported with the others."""
    inside = re.fullmatch(r"layers\.(\d+)\.(.+)", key)
    if inside is None:
        key = key.replace(f"{EMBEDDING}proj.", "patch_embed.proj.")
        return key.replace(EMBEDDING_NORM, "norm_pre.")
    block, name = inside.groups()
    for published, ours in BLOCK.items():
        name = name.replace(published, ours) if name.startswith(published) else name
    return f"blocks.{block}.{name}"


def fetch() -> Path:
    """Return the path of the published file in torch's cache; download it first if need be.

    Raises:
        RssegError: No network.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL, os.fspath(path), progress=sys.stderr.isatty())
    except OSError as error:
        raise RssegError(
            f"the pretrained weights {FILE} are not cached and could not be downloaded: {error}",
            where=f"{URL} (licence: Apache-2.0)",
            fix="connect; or fetch the file by other means and give it with --weights FILE;"
            " or go without on purpose: --no-pretrained",
        ) from error
    return path
