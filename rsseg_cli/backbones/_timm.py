"""Base class of the backbones from timm: construction, loading, input statistics."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """Side of a patch in pixels in the pretraining."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of timm's constructor that differ from those of `model`."""
    published: bool = True
    """Whether weights are published; otherwise the model is random."""
    source: _weights.WeightsSource | None = None
    """Published file; None for that of timm's `model`."""
    side: int | None = None
    """Positions per side in the weights; None as in timm's `model`."""
    channels: int = 3
    """Input channels of the published patch kernel."""


class TimmBackbone(Backbone):
    """A vision transformer of timm with access to its blocks. A family adds `sizes` and `run`."""

    class Config(_weights.PretrainedConfig):
        """Choice of the model, and its adaptation to bands and patch size."""

        patch: int | None = Field(default=None, ge=1)
        """Side of a patch in pixels; None keeps that of the weights, others resize the kernel."""
        adapt: _band_adaptation.KernelAdaptation = "interpolate"
        """Adaptation of the RGB kernel to all bands, see `_band_adaptation.mixing_matrix`."""
        stats: _band_adaptation.InputStatistics = "auto"
        """Statistics of the input: of the `data`, or the `native` ones of the pretraining."""
        resize: _resize.Resize | None = None
        """Resizing of kernel and positions; None selects the rule of the family."""

    sizes: ClassVar[Mapping[str, ModelSize]]
    name_words: ClassVar[int] = 1
    """Number of words in the family's name, before those of the size."""
    default_resize: ClassVar[_resize.Resize] = "timm"
    has_dynamic_size: ClassVar[bool] = True
    """Whether timm's class has the argument `dynamic_img_size`."""
    has_native_statistics: ClassVar[bool] = True
    """Whether the pretraining used one mean and std for all images."""
    model: Any

    def __init__(self, config: Config, bands: Bands) -> None:
        super().__init__()
        size = _size_of(config.name, self.sizes, self.name_words)
        self.bands = bands
        self.resize = config.resize or self.default_resize
        self.patch = config.patch or size.patch
        config.check_weights()
        if config.stats == "native" and not self.has_native_statistics:
            raise RssegError(
                f"{config.name} was trained with the statistics of each sensor: "
                "there are no native ones",
                where="backbone.stats",
                fix="backbone.stats data (or auto)",
            )
        self.weights_are_public = config.weights is not None or (
            config.pretrained and size.published
        )
        channels = size.channels if self.weights_are_public else len(bands)
        self.model = self._build(size, config.seed, channels=channels)
        self.positions = self._position_rule(config.name)
        mix = _band_adaptation.mixing_matrix(bands, config.adapt)
        if self.weights_are_public:
            source, sha256 = self._load(config, size)
            self.adapt_patch_embed(mix)
        else:
            source = f"random numbers of seed {config.seed}"
            sha256 = _weights.digest_random(self.model)
        native = self.has_native_statistics and _band_adaptation.uses_native_statistics(
            bands, config.stats, pretrained=self.weights_are_public
        )
        self.to_native: nn.Module = nn.Identity()
        if native:
            statistics = self.model.pretrained_cfg
            self.to_native = _band_adaptation.Affine(
                *_band_adaptation.native_statistics(
                    bands, mix, statistics["mean"], statistics["std"]
                )
            )
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
            "sha256": sha256,
            "patch": self.patch,
            "resize": self.resize,
            "adapt": config.adapt,
            "stats": "native" if native else "data",
        }
        self.eval()

    def _build(self, size: ModelSize, seed: int, *, channels: int) -> nn.Module:
        """Build the network with seeded random numbers, on the CPU or the meta device."""
        side = size.side or _weights.timm_config(size.model)["input_size"][-1] // size.patch
        arguments: dict[str, Any] = {
            "patch_size": self.patch,
            # As many positions as in the weights; `embed` resizes them to the grid of each image.
            "img_size": side * self.patch,
            "in_chans": channels,
            "num_classes": 0,
        }
        if self.has_dynamic_size:
            arguments["dynamic_img_size"] = True
        with _weights.seeded(seed):
            model: nn.Module = timm.create_model(size.model, **(arguments | dict(size.changes)))
        return model

    def _load(self, config: Config, size: ModelSize) -> tuple[str, str]:
        """Load the weights; return their source and their SHA-256."""
        if config.weights is not None:
            tensors, where = _weights.read_file(config.weights), str(config.weights)
        elif size.source is not None:
            tensors, where = _weights.read_file(_weights.fetch(size.source)), size.source.file
        else:
            tensors, where = _weights.read_hub(size.model), f"hub: {size.model}"
        sha256 = _weights.digest(tensors)
        try:
            translated = self.translate(tensors)
        except (RuntimeError, ValueError, KeyError, AttributeError, AssertionError) as error:
            raise RssegError(
                f"these weights are not for {config.name}: {error}",
                where=where,
                fix=f"the file that was published for {config.name}",
            ) from error
        _weights.load_strictly(self.model, translated, name=config.name, where=where)
        return (where if config.weights is None else config.weights.name), sha256

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename published tensors to those of `model`, and resize the patch kernel."""
        channels = self.model.patch_embed.proj.in_channels
        resized = {  # first, so that timm does not resize by its rule
            key: _resize.resize_kernel(t, self.patch, self.resize)
            if t.ndim == 4 and t.shape[1] == channels
            else t
            for key, t in tensors.items()
        }
        module = sys.modules[type(self.model).__module__]
        with contextlib.redirect_stdout(io.StringIO()):  # timm prints the keys that it drops
            translated: dict[str, Tensor] = module.checkpoint_filter_fn(resized, self.model)
        return {key: t for key, t in translated.items() if not key.startswith("head.")}

    def _position_rule(self, name: str) -> _resize.PositionRule:
        """Return the rule for resizing positions.

        Raises:
            RssegError: The setting is `authors`, whose code does not resize positions.
        """
        rules = {"timm": _resize.TIMM, "plain": _resize.PLAIN}
        rule = rules.get(self.resize) or self.authors_resize()
        if rule is None:
            raise RssegError(
                f"the authors of {name} resize no positions",
                where="backbone.resize",
                fix="backbone.resize timm (or plain)",
            )
        return rule

    def authors_resize(self) -> _resize.PositionRule | None:
        """Return the rule of the authors' code for positions; None if it does not resize any."""
        return None

    def adapt_patch_embed(self, mix: Tensor) -> None:
        """Replace the RGB kernel of the patch embedding by one for the bands of `mix` (C, 3)."""
        patches: nn.Conv2d = self.model.patch_embed.proj
        patches.weight = nn.Parameter(_band_adaptation.adapt_kernel(patches.weight.detach(), mix))
        patches.in_channels = len(mix)

    def renormalise(self, image: Tensor) -> Tensor:
        """Convert a standardised image (B, C, H, W) to the statistics of the pretraining."""
        converted: Tensor = self.to_native(image)
        return converted

    @classmethod
    def licence(cls, size: str) -> tuple[str, str]:
        """Return the licence of a size's weights and the page that states it."""
        entry = cls.sizes[size]
        if not entry.published:
            return "none: it starts at random", "-"
        if entry.source is not None:
            return entry.source.license, entry.source.page
        config = _weights.timm_config(entry.model)
        return config.get("license") or "", f"https://huggingface.co/{config['hf_hub_id']}"

    def default_out_indices(self) -> tuple[int, ...]:
        """Return the default of `out_indices`."""
        return even_out_indices(self.depth)

    def embed(self, image: Tensor) -> tuple[Tensor, Grid]:
        """Embed patches, add resized positions, and prepend the prefix."""
        patches = self.model.patch_embed(self.renormalise(image))
        positioned = _resize.add_positions(self.model, patches, self.positions)
        tokens: Tensor = self.model.norm_pre(positioned)
        return tokens, self.grid_of(image)

    def projections(self, index: int, role: Role) -> list[Projection]:
        """Return the linear layer with this role; q, k and v are thirds of one layer."""
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
    """Return four blocks at equal steps up to the last one; of 24 blocks those of Rein."""
    if depth == 24:
        return 7, 11, 15, 23
    return tuple(sorted({max(depth * quarter // 4 - 1, 0) for quarter in (1, 2, 3, 4)}))


def choose_out_indices(
    requested: tuple[int, ...] | None, default: tuple[int, ...], depth: int
) -> tuple[int, ...]:
    """Return the requested blocks, or the default for None.

    Raises:
        RssegError: The list is empty, not ascending, or beyond the last block.
    """
    if requested is None:
        return default
    ascending = list(requested) == sorted(set(requested))
    if not requested or not ascending or requested[0] < 0 or requested[-1] >= depth:
        raise RssegError(
            f"out_indices {list(requested)} are not ascending block numbers of 0..{depth - 1}",
            where="backbone.out_indices",
            fix=f"backbone.out_indices: {list(default)}",
        )
    return requested


def whole(linear: nn.Linear) -> Projection:
    """Return the projection of all rows of a linear layer."""
    return Projection(linear, slice(0, linear.out_features))


def third(fused: nn.Linear, index: int) -> Projection:
    """Return queries (0), keys (1) or values (2) of a fused linear layer."""
    rows = fused.out_features // 3
    return Projection(fused, slice(index * rows, (index + 1) * rows))
