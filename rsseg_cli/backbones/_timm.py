"""Base class of the backbones from timm: construction, loading, statistics of the input."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import timm
from pydantic import Field
from torch import Tensor, nn

from rsseg_cli.backbones import _band_adaptation, _resize, _weights
from rsseg_cli.contract import Backbone, Bands, Grid, Projection, Role
from rsseg_cli.errors import RssegError, unknown


@dataclass(frozen=True)
class ModelSize:
    """One size of a family."""

    model: str
    """timm's `name.tag`; the tag stands for the published weights."""
    patch: int
    """Side of the patch that the weights were trained with."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of timm's constructor that differ from those behind the name."""
    published: bool = True
    """Whether there are weights at all; without, the numbers are random by design."""
    home: _weights.WeightsSource | None = None
    """Where the weights are if they are not those behind timm's name."""
    side: int | None = None
    """Places per side that the weights have positions for; None: as behind timm's name."""
    channels: int = 3
    """Bands that the patch kernel of the weights takes."""


class TimmBackbone(Backbone):
    """A vision transformer of timm with access to its blocks. A family adds `sizes` and `run`."""

    class Config(Backbone.Config):
        """Which model, and how it is fitted to the bands."""

        name: str
        """`<family>_<size>`."""
        weights: Path | None = None
        """A file with the weights, instead of the hub."""
        pretrained: bool = True
        """False: random numbers on purpose."""
        seed: int = 0
        """Seed of those random numbers."""
        patch: int | None = Field(default=None, ge=1)
        """Side of a patch in pixels; None keeps the weights' own, else the kernel is resampled."""
        out_indices: tuple[int, ...] | None = None
        """Blocks whose output becomes a map; None takes four at equal steps."""
        adapt: _band_adaptation.KernelAdaptation = "interpolate"
        """How the RGB kernel becomes one for all bands, see `_band_adaptation.mixing`."""
        stats: _band_adaptation.InputStatistics = "auto"
        """Statistics of the input: the data's own, or those that the weights were trained with."""
        resize: _resize.Resize | None = None
        """How kernel and positions are fitted to other sizes; None takes the family's own way."""

    sizes: ClassVar[Mapping[str, ModelSize]]
    resizable: ClassVar[bool] = True
    """Whether timm's class wants to be told that images come in many sizes."""
    name_words: ClassVar[int] = 1
    """Words of the family's name, before those of the size."""
    default_resize: ClassVar[_resize.Resize] = "timm"
    """How the family is resized unless a run says otherwise: by the library that serves it."""
    model: Any

    def __init__(self, config: Config, bands: Bands) -> None:
        super().__init__()
        size = _size_of(config.name, self.sizes, self.name_words)
        self.bands = bands
        self.resize = config.resize or self.default_resize
        self.patch = config.patch or size.patch
        from_random = config.weights is None and not (config.pretrained and size.published)
        if config.weights is not None and not config.pretrained:
            raise _weights.contradiction()
        channels = len(bands) if from_random else size.channels
        self.model = self._make(size, config.seed, channels=channels)
        self.positions = self._positions(config.name)
        mix = _band_adaptation.mixing(bands, config.adapt)
        if from_random:
            source = f"random numbers of seed {config.seed}"
            content = _weights.digest_random(self.model)
        else:
            source, content = self._load(config, size)
            self.widen(mix)
        native = _band_adaptation.native(bands, config.stats, pretrained=not from_random)
        self._restate(mix, native=native)
        self.dim = self.model.embed_dim
        self.depth = len(self.model.blocks)
        self.num_prefix_tokens = getattr(self.model, "num_prefix_tokens", 0)
        self.out_indices = choose_out_indices(
            config.out_indices, self.default_out_indices(), self.depth
        )
        self.origin = {
            "name": config.name,
            "model": size.model,
            "source": source,
            "sha256": content,
            "patch": self.patch,
            "resize": self.resize,
            "adapt": config.adapt,
            "stats": "native" if native else "data",
        }
        self.weights_are_public = not from_random
        self.eval()

    def _make(self, size: ModelSize, seed: int, *, channels: int) -> nn.Module:
        """Build the network with seeded random numbers, on the CPU or the meta device."""
        side = size.side or _weights.published_as(size.model)["input_size"][-1] // size.patch
        arguments: dict[str, Any] = {
            "patch_size": self.patch,
            # As many positions as the weights have: they are resampled once, to each image's grid.
            "img_size": side * self.patch,
            "in_chans": channels,
            "num_classes": 0,
        }
        if self.resizable:
            arguments["dynamic_img_size"] = True
        with _weights.seeded(seed):
            model: nn.Module = timm.create_model(size.model, **(arguments | dict(size.changes)))
        return model

    def _load(self, config: Config, size: ModelSize) -> tuple[str, str]:
        """Load the published or the given weights; return their source and their digest."""
        if config.weights is not None:
            tensors, where = _weights.read_file(config.weights), str(config.weights)
        elif size.home is not None:
            tensors, where = _weights.read_file(_weights.fetch(size.home)), size.home.file
        else:
            tensors, where = _weights.read_hub(size.model), f"hub: {size.model}"
        content = _weights.digest(tensors)
        try:
            translated = self.translate(tensors)
        except (RuntimeError, ValueError, KeyError, AttributeError, AssertionError) as error:
            raise RssegError(
                f"these weights are not for {config.name}: {error}",
                where=where,
                fix=f"the file that was published for {config.name}",
            ) from error
        _weights.load_strictly(self.model, translated, name=config.name, where=where)
        return (where if config.weights is None else config.weights.name), content

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename tensors as published to those of `model`, and resize the patch kernel."""
        channels = self.model.patch_embed.proj.in_channels
        fitted = {  # before timm does it, whose way is only one of several
            key: _resize.resize_kernel(t, self.patch, self.resize)
            if t.ndim == 4 and t.shape[1] == channels
            else t
            for key, t in tensors.items()
        }
        rules = sys.modules[type(self.model).__module__]
        with contextlib.redirect_stdout(io.StringIO()):  # timm prints the keys that it drops
            translated: dict[str, Tensor] = rules.checkpoint_filter_fn(fitted, self.model)
        return {key: t for key, t in translated.items() if not key.startswith("head.")}

    def _positions(self, name: str) -> _resize.Positions:
        """Return the rule for resizing positions.

        Raises:
            RssegError: The authors have none.
        """
        if self.resize == "timm":
            return _resize.TIMM
        if self.resize == "plain":
            return _resize.BARE
        rule = self.authors_resize()
        if rule is None:
            raise RssegError(
                f"the authors of {name} resize no positions",
                where="backbone.resize",
                fix="backbone.resize timm (or plain)",
            )
        return rule

    def authors_resize(self) -> _resize.Positions | None:
        """Return the rule of the authors' code for positions; None if it resizes none."""
        return None

    def widen(self, mix: Tensor) -> None:
        """Replace the RGB kernel of the patch embedding by one for the bands of `mix` (C, 3)."""
        patches: nn.Conv2d = self.model.patch_embed.proj
        patches.weight = nn.Parameter(_band_adaptation.adapt_kernel(patches.weight.detach(), mix))
        patches.in_channels = len(mix)

    def _restate(self, mix: Tensor, *, native: bool) -> None:
        gain = offset = None
        if native:
            config = self.model.pretrained_cfg
            gain, offset = _band_adaptation.restatement(
                self.bands, mix, config["mean"], config["std"]
            )
        self.gain: Tensor | None
        self.offset: Tensor | None
        self.register_buffer("gain", gain, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def renormalise(self, image: Tensor) -> Tensor:
        """Convert a standardised image (B, C, H, W) to the statistics of the pretraining."""
        if self.gain is None or self.offset is None:
            return image
        return image * self.gain + self.offset

    @classmethod
    def licence(cls, size: str) -> tuple[str, str]:
        """Return the licence of a size's weights and the page that states it."""
        entry = cls.sizes[size]
        if not entry.published:
            return "none: it starts at random", "-"
        if entry.home is not None:
            return entry.home.license, entry.home.page
        known = _weights.published_as(entry.model)
        return known.get("license") or "", f"https://huggingface.co/{known['hf_hub_id']}"

    def default_out_indices(self) -> tuple[int, ...]:
        """Return the blocks whose output becomes a map, unless the settings name others."""
        return even_out_indices(self.depth)

    def projections(self, index: int, role: Role) -> list[Projection]:
        """List the linear maps of a block that play a role; q, k, v are thirds of one."""
        block = self.model.blocks[index]
        if role in ("fc1", "fc2"):
            return [whole(getattr(block.mlp, role))]
        return [third(block.attn.qkv, "qkv".index(role))]

    def grid_of(self, image: Tensor) -> Grid:
        """Return the grid of patches of an image (B, C, H, W)."""
        return Grid(image.shape[2] // self.patch, image.shape[3] // self.patch)


def _size_of(name: str, sizes: Mapping[str, ModelSize], words: int) -> ModelSize:
    parts = name.split("_")
    family, size = "_".join(parts[:words]), "_".join(parts[words:])
    if size not in sizes:
        raise unknown("backbone", name, [f"{family}_{known}" for known in sizes])
    return sizes[size]


def even_out_indices(depth: int) -> tuple[int, ...]:
    """Return four blocks at equal steps, with the last one; of 24 blocks those of Rein."""
    if depth == 24:
        return 7, 11, 15, 23
    return tuple(sorted({max(depth * part // 4 - 1, 0) for part in (1, 2, 3, 4)}))


def choose_out_indices(
    wanted: tuple[int, ...] | None, default: tuple[int, ...], depth: int
) -> tuple[int, ...]:
    """Check `out_indices` against the number of blocks.

    Raises:
        RssegError: None, not ascending, or beyond the last block.
    """
    if wanted is None:
        return default
    if not wanted or list(wanted) != sorted(set(wanted)) or wanted[0] < 0 or wanted[-1] >= depth:
        raise RssegError(
            f"out_indices {list(wanted)} are not ascending block numbers of 0..{depth - 1}",
            where="backbone.out_indices",
            fix=f"backbone.out_indices: {list(default)}",
        )
    return wanted


def whole(linear: nn.Linear) -> Projection:
    """Return the projection of all rows of a linear map."""
    return Projection(linear, slice(0, linear.out_features))


def third(fused: nn.Linear, index: int) -> Projection:
    """Return queries (0), keys (1) or values (2) out of a fused linear map."""
    rows = fused.out_features // 3
    return Projection(fused, slice(index * rows, (index + 1) * rows))
