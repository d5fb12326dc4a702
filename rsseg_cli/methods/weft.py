"""WEFT: a wavelet-expert pyramid parallel to a frozen backbone (AAAI 2026, arXiv 2601.09108).

A small pyramid with wavelet experts encodes the image. Before each of four stages of frozen blocks
it is injected into the backbone's tokens, after each stage it is enhanced; finally the sum of both
streams gives four maps. Written from the paper's equations. Backward recomputes the activations of
small convolutions and of attention samples, which would need as much memory as the backbone's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from rsseg_cli.contract import Backbone, Features, Grid, Method, State
from rsseg_cli.errors import RssegError
from rsseg_cli.layers.recompute import recomputed
from rsseg_cli.methods._weft.attention import NormedDeformableAttention
from rsseg_cli.methods._weft.cascade import BatchNorm, Cascade, RunningStatistics
from rsseg_cli.methods._weft.injector import Injector, mean_over_groups
from rsseg_cli.methods._weft.pyramid import (
    LEVELS,
    Experts,
    ExpertShares,
    Pyramid,
    StemNorm,
    TrainedExperts,
)
from rsseg_cli.methods._weft.spatial_enhancement import (
    Enhancer,
    Laplacian,
    Pooling,
    SpatialExpert,
    join,
    split,
)
from rsseg_cli.methods._weft.token_optimizer import Similarity, TokenOptimizer, VarianceStatistics
from rsseg_cli.settings import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OutputNorm = Literal["layer", "batch"]

STAGES = 4
"""Equal groups of blocks with an injection before and an enhancement after each."""
EXTRA_ENHANCERS = 2
"""Further enhancements after the last stage."""


@dataclass
class WeftState(State):
    """Levels of the pyramid, and the backbone's map after each stage."""

    finest: Tensor = field(default_factory=lambda: torch.empty(0))
    """(B, channels, 4h, 4w): the finest level, projected to width D at the end only."""
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))
    """(B, N', D): the levels of 2, 1 and 1/2 times the grid, one after the other."""
    sizes: tuple[tuple[int, int], ...] = ()
    """(rows, columns) of these levels."""
    stages: list[Tensor] = field(default_factory=list)
    """(B, D, h, w) after each stage."""


class Weft(Method[WeftState]):
    """Trains a wavelet pyramid, its injectors and its enhancers."""

    class Config(Method.Config):
        """Settings of WEFT. Defaults differ from the released code where it deviates or is weak."""

        twe: bool = True
        """Wavelet experts; false: a plain convolutional pyramid."""
        esto: bool = True
        """Token optimiser; false: the output of the attention is injected unchanged."""
        see: bool = True
        """Enhancers; false: the pyramid's tokens stay as extracted."""
        channels: int = Field(64, ge=4, multiple_of=4)
        """Width of the pyramid's levels."""
        kernels: tuple[int, ...] = Field((1, 3, 5, 7, 9, 11, 13), min_length=1)
        """Kernel side of each expert; its length is the number of experts."""
        active: int = Field(4, ge=1)
        """Experts per image and level; the paper's ablation: 1, 2, 4, 6."""
        shares: ExpertShares = "proportional"
        """Weights of an image's experts. "softmax": a second softmax over the gate's
        probabilities, as released."""
        trained_experts: TrainedExperts = "chosen"
        """Experts computed in training. "all": also those that no image chose, as released; the
        batch statistics of every expert are then those of all images."""
        running: RunningStatistics = "own"
        """Running statistics of the batch norms, for each level and group of a cascade. "shared":
        common ones, as released, which fit no level in evaluation; see `BatchNorm`."""
        heads: int = Field(16, ge=1)
        """Heads of the deformable attention."""
        points: int = Field(4, ge=1)
        """Points per head and level of the deformable attention."""
        attention_ratio: float = Field(0.5, gt=0)
        """Inner width of the attention over D."""
        subspaces: int = Field(4, ge=1)
        """Heads of the token optimiser."""
        similarity: Similarity = "head"
        """Similarity of tokens. "token": nearly uniform, as released; see `TokenOptimizer`."""
        statistics: VarianceStatistics = "image"
        """Images over which boundaries are standardised. "batch": the whole batch, as released."""
        stem_norm: StemNorm = "batch"
        """Norm of the pyramid's first convolution. "image": over each image, for scenes with other
        light or processing; tiles of a single land cover then become indistinguishable."""
        output_norm: OutputNorm = "layer"
        """Norm of the four maps for the head: over the channels of each pixel, or over the "batch"
        as released. With small batches the maps then differ between training and evaluation."""
        enhancer_ratio: float = Field(0.25, gt=0)
        """Inner width of an enhancer over D."""
        laplacian: Laplacian = "directional"
        """Edge filter. "free": a trained kernel of one direction, as released; see `Edges`."""
        pool: Pooling = "adaptive"
        """Coarse maxima. "identity": a pooling without effect, as released."""
        drop_path: float = Field(0.1, ge=0, lt=1)
        """Fraction of images that skip an enhancer in training; 0.4 as released."""
        extractor_attention: bool = False
        """Attention of enhancers to the backbone's tokens, as in ViT-Adapter; not released."""

        @model_validator(mode="after")
        def _check(self) -> Weft.Config:
            if self.active > len(self.kernels):
                raise ValueError(f"{self.active} active of {len(self.kernels)} experts")
            if any(kernel < 1 or kernel % 2 == 0 for kernel in self.kernels):
                raise ValueError(f"kernels {list(self.kernels)} are not all odd")
            return self

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        dim, depth = backbone.dim, backbone.depth
        hidden = int(dim * config.enhancer_ratio)
        _check_widths(config, dim, hidden, depth)
        # Even grids, so that the coarsest level covers the image exactly.
        self.multiple = 2 * backbone.patch
        self.num_prefix_tokens = backbone.num_prefix_tokens
        bounds = [stage * depth // STAGES for stage in range(STAGES + 1)]
        self.first = {block: stage for stage, block in enumerate(bounds[:-1])}
        self.last = {block - 1: stage for stage, block in enumerate(bounds[1:])}
        self.pyramid = _pyramid(config, backbone)
        self.level_embed = nn.Parameter(torch.randn(LEVELS - 1, dim))
        self.injectors = nn.ModuleList(_injector(config, dim) for _ in range(STAGES))
        enhancers = STAGES + EXTRA_ENHANCERS if config.see else 0
        self.enhancers = nn.ModuleList(_enhancer(config, dim, hidden) for _ in range(enhancers))
        norm = BatchNorm if config.output_norm == "batch" else LayerNorm2d
        self.norms = nn.ModuleList(norm(dim) for _ in range(LEVELS))

    def num_feature_maps(self, backbone: Backbone) -> int:
        """Return the number of levels: 4, 2, 1 and 1/2 times the grid of patches."""
        return LEVELS

    def no_weight_decay(self) -> Collection[Parameter]:
        """Return the branch logits of the enhancers."""
        return [m.shares for m in self.modules() if isinstance(m, SpatialExpert)]

    def begin(self, image: Tensor, grid: Grid) -> WeftState:
        """Build the pyramid of the image."""
        finest, *levels = self.pyramid(image, (grid.h, grid.w))
        embedded = [
            self.pyramid.wide(level) + embed[:, None, None]
            for level, embed in zip(levels, self.level_embed, strict=True)
        ]
        sizes = tuple((level.shape[2], level.shape[3]) for level in levels)
        return WeftState(grid, finest=finest, tokens=join(embedded), sizes=sizes)

    def before_block(self, index: int, tokens: Tensor, state: WeftState) -> Tensor:
        """Inject the pyramid before the first block of a stage."""
        if index not in self.first:
            return tokens
        prefix, patches = tokens.tensor_split([self.num_prefix_tokens], 1)
        injector = self.injectors[self.first[index]]
        added = injector(patches, state.grid, state.tokens, state.sizes)
        return torch.cat((prefix, patches + added), dim=1)

    def after_block(self, index: int, tokens: Tensor, state: WeftState) -> Tensor:
        """Enhance the pyramid after the last block of a stage, and store the backbone's map."""
        if index not in self.last:
            return tokens
        stage, size = self.last[index], (state.grid.h, state.grid.w)
        patches = mean_over_groups(tokens[:, self.num_prefix_tokens :], state.grid)
        end = None if stage == STAGES - 1 else stage + 1
        for enhancer in self.enhancers[stage:end]:
            state.tokens = enhancer(state.tokens, state.sizes, patches, size)
        state.stages += split(patches, [size])
        return tokens

    def finish(self, maps: list[Tensor], state: WeftState) -> Features:
        """Add both streams to four maps; the backbone's own maps are not used."""
        levels = split(state.tokens, state.sizes)
        first, *others = state.stages
        # Backward recomputes the sums, which are as large as all tokens together.
        sums = [recomputed(self._finest, state.finest, levels[0], first)]
        sums += [
            recomputed(self._sum, number, level, stage)
            for number, (level, stage) in enumerate(zip(levels, others, strict=True), start=1)
        ]
        for (_, statistics), norm in zip(sums, self.norms, strict=True):
            if isinstance(norm, BatchNorm):
                norm.update([statistics], 0)
        return Features([image for image, _ in sums])

    def _finest(
        self, narrow: Tensor, coarser: Tensor, stage: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        level = self.pyramid.wide(narrow)
        return self._sum(0, level + _resized(coarser, level), stage)

    def _sum(self, number: int, level: Tensor, stage: Tensor) -> tuple[Tensor, Tensor | None]:
        """Add a stage's map to a level and normalise; also return a batch norm's statistics."""
        total, norm = level + _resized(stage, level), self.norms[number]
        if isinstance(norm, BatchNorm):
            return norm.normalise(total, 0)
        return norm(total), None

    def log_entry(self) -> dict[str, Json]:
        """Return the experts' usage in the last batch and the strength of each injection."""
        gammas = [injector.get_parameter("gamma").detach() for injector in self.injectors]
        return {
            "experts": self.pyramid.usage.tolist(),
            "injection": [float(gamma.abs().mean()) for gamma in gammas],
        }

    @classmethod
    def figures(cls, records: Sequence[dict[str, Json]]) -> Iterator[tuple[str, Figure]]:
        """Draw the experts' usage and the strength of the injections over time."""
        from rsseg_cli.report.charts import new_figure

        lines = [(line["step"], line["method"]) for line in records if "method" in line]
        if not lines:
            return
        figure, axes = new_figure(columns=2, size=(10, 3.5))
        titles = {
            "experts": ("fraction of images that chose each expert", "expert"),
            "injection": ("mean |gamma| of each injection", "stage"),
        }
        for axis, (key, (title, label)) in zip(axes, titles.items(), strict=True):
            steps: list[Any] = [step for step, _ in lines]
            values = [entry[key] for _, entry in lines if isinstance(entry, dict)]
            for number, series in enumerate(zip(*values, strict=True), start=1):
                axis.plot(steps, series, label=f"{label} {number}")
            axis.set(title=title, xlabel="step")
            if axis.lines:
                axis.legend()
        yield "experts and injections", figure


def _pyramid(config: Weft.Config, backbone: Backbone) -> Pyramid:
    experts = None
    if config.twe:
        experts = Experts(
            config.channels, config.kernels, active=config.active, shares=config.shares,
            trained=config.trained_experts, running=config.running,
        )  # fmt: skip
    return Pyramid(
        len(backbone.bands), backbone.dim, channels=config.channels, experts=experts,
        running=config.running, stem_norm=config.stem_norm,
    )  # fmt: skip


def _injector(config: Weft.Config, dim: int) -> Injector:
    attention, optimizer = _attention(config, dim, levels=LEVELS - 1), None
    if config.esto:
        optimizer = TokenOptimizer(
            dim, heads=config.subspaces, similarity=config.similarity, statistics=config.statistics
        )
    return Injector(dim, attention, optimizer)


def _enhancer(config: Weft.Config, dim: int, hidden: int) -> Enhancer:
    expert = SpatialExpert(
        hidden, levels=LEVELS - 1, laplacian=config.laplacian, pool=config.pool,
        running=config.running,
    )  # fmt: skip
    attention = _attention(config, dim, levels=1) if config.extractor_attention else None
    return Enhancer(dim, hidden, expert, drop_path=config.drop_path, attention=attention)


def _attention(config: Weft.Config, dim: int, *, levels: int) -> NormedDeformableAttention:
    inner = int(dim * config.attention_ratio)
    return NormedDeformableAttention(
        dim, inner=inner, levels=levels, heads=config.heads, points=config.points
    )


def _check_widths(config: Weft.Config, dim: int, hidden: int, depth: int) -> None:
    """Check that the backbone has enough blocks and that all widths can be divided."""
    if depth < STAGES:
        raise RssegError(
            f"weft has {STAGES} stages, the backbone has {depth} blocks",
            where="backbone.name",
            fix=f"a backbone of at least {STAGES} blocks",
        )
    for setting, width, divisor in (
        ("method.subspaces", dim, config.subspaces),
        ("method.heads", int(dim * config.attention_ratio), config.heads),
        ("method.enhancer_ratio", hidden, Cascade.GROUPS),
    ):
        if not width or width % divisor:
            raise RssegError(
                f"{width} channels cannot be split into {divisor} equal parts",
                where=setting,
                fix=f"another {setting}, or a backbone of another width than {dim}",
            )


def _resized(image: Tensor, like: Tensor) -> Tensor:
    """Resize a map bilinearly to the size of another."""
    return F.interpolate(image, like.shape[-2:], mode="bilinear", align_corners=False)
