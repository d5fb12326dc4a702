"""Frozen depth encoder: a second encoder, which reads the red, green and blue bands.

It is the DINOv2 encoder of Depth Anything V2 or Prompt Depth Anything; their decoders, and the
prompt that enters there, are not needed. Its blocks run in step with those of the visual encoder,
without gradients. Model files contain only the digest of its weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self, TypeVar

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from rsseg_cli.backbones._timm import ModelSize
from rsseg_cli.backbones.dinov2 import Dinov2
from rsseg_cli.contract import Backbone, Bands, Grid, Method, State
from rsseg_cli.errors import RssegError

DepthName = Literal[
    "prompt_depth_anything_large",
    "prompt_depth_anything_small",
    "depth_anything_v2_large",
    "depth_anything_v2_base",
    "depth_anything_v2_small",
    "random",
    "off",
]
"""`random` has the visual encoder's width and depth and random weights, for tests only."""


@dataclass(frozen=True)
class DepthWeights:
    """Source of a depth encoder's weights."""

    size: str
    repository: str
    license: str


PUBLISHED: dict[str, DepthWeights] = {
    name: DepthWeights(name.rpartition("_")[2], f"depth-anything/{repository}", license)
    for name, repository, license in (
        ("prompt_depth_anything_large", "prompt-depth-anything-vitl-hf", "apache-2.0"),
        ("prompt_depth_anything_small", "prompt-depth-anything-vits-hf", "apache-2.0"),
        ("depth_anything_v2_large", "Depth-Anything-V2-Large-hf", "cc-by-nc-4.0"),
        ("depth_anything_v2_base", "Depth-Anything-V2-Base-hf", "cc-by-nc-4.0"),
        ("depth_anything_v2_small", "Depth-Anything-V2-Small-hf", "apache-2.0"),
    )
}
FILE = "model.safetensors"

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalisation of DINOv2 and both depth networks, for values in 0..1."""

RGB = Bands(
    names=("red", "green", "blue"),
    wavelengths_nm=(660.0, 560.0, 485.0),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    dtype="float32",
)


class DepthEncoder(Dinov2):
    """DINOv2 in files of depth networks, those of transformers or of the authors."""

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Extract the encoder from a depth network and name its tensors as timm does."""
        if any(name.startswith("backbone.encoder.layer.") for name in tensors):
            return super().translate(_from_transformers(tensors))
        plain = {name.removeprefix("pipeline."): tensor for name, tensor in tensors.items()}
        prefix = "pretrained."
        encoder = {n.removeprefix(prefix): t for n, t in plain.items() if n.startswith(prefix)}
        return super().translate({n: t for n, t in (encoder or plain).items() if n != "mask_token"})


RENAMED = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("encoder.layer.", "blocks."),
    (".attention.output.dense.", ".attn.proj."),
    (".layer_scale1.lambda1", ".ls1.gamma"),
    (".layer_scale2.lambda1", ".ls2.gamma"),
    ("layernorm.", "norm."),
)


def _from_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the backbone of a transformers file and fuse queries, keys and values."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        inner = name.removeprefix("backbone.")
        if inner == name or inner == "embeddings.mask_token":
            continue
        for theirs, ours in RENAMED:
            inner = inner.replace(theirs, ours)
        renamed[inner] = tensor
    for name in [name for name in renamed if ".attention.attention.query." in name]:
        roles = ("query", "key", "value")
        matrices = [renamed.pop(name.replace(".query.", f".{role}.")) for role in roles]
        renamed[name.replace(".attention.attention.query.", ".attn.qkv.")] = torch.cat(matrices)
    return renamed


@dataclass
class DepthState(State):
    """Tokens of the depth encoder after the block that ran last."""

    depth_tokens: Tensor | None = None
    depth_grid: Grid = field(default_factory=lambda: Grid(0, 0))


class DepthBranch(nn.Module):
    """Depth encoder that runs block by block in step with the visual one.

    Stored values are mapped to red, green and blue in 0..1: 8-bit values divided by 255, all others
    by stretching each band's mean - 2 std .. mean + 2 std.

    Raises:
        RssegError: The image has no red, green or blue band; or the weights are not available, or
            differ in width or depth from the visual encoder.
    """

    gain: Tensor
    offset: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, name: DepthName, weights: Path | None, backbone: Backbone) -> None:
        super().__init__()
        bands = backbone.bands
        rgb = bands.rgb()
        if rgb is None:
            known = [centre for centre in bands.wavelengths_nm if centre is not None]
            raise RssegError(
                "the depth encoder requires red, green and blue, and the data have no such bands "
                f"(wavelengths {known or 'unknown'} nm)",
                where="bands of the dataset, method.depth",
                fix="wavelengths_nm near 660, 560 and 485 in the dataset's YAML, "
                "or method.depth=off",
            )
        self.rgb = rgb
        eight_bit = bands.dtype == "uint8"
        gain = [bands.std[band] / 255 if eight_bit else 0.25 for band in rgb]
        offset = [bands.mean[band] / 255 if eight_bit else 0.5 for band in rgb]
        for key, values in (
            ("gain", gain), ("offset", offset), ("mean", IMAGENET_MEAN), ("std", IMAGENET_STD),
        ):  # fmt: skip
            buffer = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(key, buffer, persistent=False)
        self.encoder = _open(name, weights, backbone)
        self.encoder.requires_grad_(False)

    @torch.no_grad()
    def begin(self, image: Tensor, state: DepthState) -> None:
        """Embed a standardised image (B, C, H, W) so that both encoders have the same grid."""
        rgb = image[:, list(self.rgb)] * self.gain + self.offset
        normal = (rgb.clamp(0, 1) - self.mean) / self.std
        size = state.grid.h * self.encoder.patch, state.grid.w * self.encoder.patch
        resized = F.interpolate(normal, size, mode="bilinear", antialias=True)
        state.depth_tokens, state.depth_grid = self.encoder.embed(resized)

    @torch.no_grad()
    def advance(self, index: int, state: DepthState) -> Tensor:
        """Run a block; return its raw patch tokens (B, N, D), the same for all groups."""
        if state.depth_tokens is None:
            raise ValueError("begin comes before advance")
        state.depth_tokens = self.encoder.run(index, state.depth_tokens, state.depth_grid)
        patches = state.depth_tokens[:, self.encoder.num_prefix_tokens :]
        return patches.repeat_interleave(state.grid.groups, dim=1)

    def digest(self) -> Tensor:
        """Return the hash of the loaded weights: (32,) uint8."""
        content = str(self.encoder.origin["sha256"]).encode()
        return torch.tensor(list(hashlib.sha256(content).digest()), dtype=torch.uint8)


def _open(name: DepthName, weights: Path | None, backbone: Backbone) -> Backbone:
    """Build the encoder and check that its size is that of the visual one."""
    if name == "random":
        return _random(backbone)
    source = PUBLISHED[name]
    path = weights or _download(name, source)
    config = DepthEncoder.Config(name=f"dinov2_{source.size}", weights=path, stats="data")
    encoder = DepthEncoder(config, RGB)
    if (encoder.dim, encoder.depth) != (backbone.dim, backbone.depth):
        raise RssegError(
            f"{name} has {encoder.depth} blocks of width {encoder.dim}, the visual encoder "
            f"{backbone.depth} of width {backbone.dim}",
            where="method.depth",
            fix="an encoder of the same size (small, base, large), or method.depth=off",
        )
    return encoder


def _download(name: DepthName, source: DepthWeights) -> Path:
    try:
        return Path(hf_hub_download(source.repository, FILE))
    except (OSError, RuntimeError, ValueError) as error:
        page = f"https://huggingface.co/{source.repository}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RssegError(
            f"the weights of {name} are not cached and could not be downloaded: {reason}",
            where=f"{page} (licence: {source.license})",
            fix=f"connect once; or download {FILE} by other means and set "
            "method.depth_weights=FILE; or go without depth: method.depth=off",
        ) from error


def _random(backbone: Backbone) -> Backbone:
    """Build a seeded encoder of the width and depth of the visual one."""
    shape = {
        "embed_dim": backbone.dim,
        "depth": backbone.depth,
        "num_heads": max(1, backbone.dim // 64),
    }

    class RandomEncoder(Dinov2):
        sizes: ClassVar = {
            "random": ModelSize(
                "vit_small_patch14_dinov2.lvd142m", patch=14, changes=shape, published=False
            )
        }

    return RandomEncoder(RandomEncoder.Config(name="dinov2_random", pretrained=False), RGB)


class DepthSettings(Method.Config):
    """Settings of methods with a depth encoder."""

    depth: DepthName
    """The depth encoder; `off` goes without."""
    depth_weights: Path | None = None
    """File of its weights; null: downloaded from the hub."""

    def without_files(self) -> Self:
        """Return settings with a random depth encoder in place of a published one."""
        if self.depth == "off":
            return self
        return self.model_copy(update={"depth": "random", "depth_weights": None})


D = TypeVar("D", bound=DepthState)
DIGEST = "method.depth_digest"


class DepthMethod(Method[D]):
    """Method with a frozen depth encoder, which is not part of model files."""

    makes_queries: ClassVar[bool] = True

    def __init__(self, config: DepthSettings, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.num_prefix_tokens = backbone.num_prefix_tokens
        self.depth_branch: DepthBranch | None = None
        if config.depth != "off":
            self.depth_branch = DepthBranch(config.depth, config.depth_weights, backbone)

    def trainable_parameters(self, backbone: Backbone) -> Iterator[tuple[str, Parameter]]:
        """Return all own parameters except the depth encoder's."""
        for name, parameter in self.named_parameters():
            if not name.startswith("depth_branch."):
                yield f"method.{name}", parameter

    def adapter_state(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return the own state, with a digest in place of the depth encoder."""
        tensors = super().adapter_state(backbone)
        own = {n: t for n, t in tensors.items() if not n.startswith("method.depth_branch.")}
        return own if self.depth_branch is None else own | {DIGEST: self.depth_branch.digest()}

    def load_adapter_state(self, tensors: dict[str, Tensor], backbone: Backbone) -> None:
        """Load the result of `adapter_state`.

        Raises:
            RssegError: The model was trained with another depth encoder.
        """
        branch = self.depth_branch
        if branch is None:
            super().load_adapter_state(tensors, backbone)
            return
        if not torch.equal(tensors[DIGEST].cpu(), branch.digest()):
            raise RssegError(
                "the depth encoder's weights are not those that the model was trained with",
                where=f"method.depth_weights ({branch.encoder.origin['source']})",
                fix="the same weights file as in training",
            )
        own = {name: tensor for name, tensor in tensors.items() if name != DIGEST}
        depth = {f"method.depth_branch.{name}": t for name, t in branch.state_dict().items()}
        super().load_adapter_state(own | depth, backbone)
