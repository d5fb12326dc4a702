"""WEFT: wavelet experts beside a frozen backbone (AAAI 2026, arXiv 2601.09108).

A small pyramid with wavelet experts reads the image; before each of four stages of frozen blocks
it is injected into the backbone's tokens; after each stage it is enhanced by itself; in the end
both streams are added to four maps. Written from the paper's equations. What small convolutions
and the attention's samples leave behind is computed again in backward: it would weigh as much as
the activations of the backbone.
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
"""Equal runs of blocks with an injection before and an enhancement after each."""
LAST = 2
"""Further enhancements after the last stage."""


@dataclass
class WeftState(State):
    """The pyramid beside the backbone, and the backbone's map after each stage."""

    finest: Tensor = field(default_factory=lambda: torch.empty(0))
    """(B, channels, 4h, 4w); waits for the end, narrow as long as it waits."""
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))
    """(B, N', D): the levels of 2, 1 and 1/2 times the grid, one after the other."""
    sizes: tuple[tuple[int, int], ...] = ()
    """(rows, columns) of these levels."""
    stages: list[Tensor] = field(default_factory=list)
    """(B, D, h, w) after each stage."""


class Weft(Method[WeftState]):
    """Trains a wavelet pyramid, its injectors and its enhancers; the backbone stays."""

    class Config(Method.Config):
        """Settings of WEFT. The defaults are ours where the released code is odd."""

        twe: bool = True
        """Wavelet experts; without, the pyramid is its plain convolutions."""
        esto: bool = True
        """Token optimiser; without, what the attention finds is injected as it is."""
        see: bool = True
        """Enhancers; without, the pyramid's tokens reach the end as they were extracted."""
        channels: int = Field(64, ge=4, multiple_of=4)
        """Width of the pyramid inside."""
        kernels: tuple[int, ...] = Field((1, 3, 5, 7, 9, 11, 13), min_length=1)
        """Side of each expert's kernel: as many experts."""
        active: int = Field(4, ge=1)
        """Experts per image and level; the paper's ablation: 1, 2, 4, 6."""
        shares: ExpertShares = "proportional"
        """"softmax": a second softmax over the gate's probabilities, as released."""
        trained_experts: TrainedExperts = "chosen"
        """"all": also those that no image chose are computed in training, as released; their
        batch norms then see every image."""
        running: RunningStatistics = "own"
        """Batch norms that levels and steps of a cascade share keep running statistics for each.
        "shared": one mixture of all, as released, which fits none of them; see `BatchNorm`."""
        heads: int = Field(16, ge=1)
        points: int = Field(4, ge=1)
        """Heads of the deformable attention, and its points per head and level."""
        attention_ratio: float = Field(0.5, gt=0)
        """Width inside the attention over D."""
        subspaces: int = Field(4, ge=1)
        """Heads of the token optimiser."""
        similarity: Similarity = "head"
        """"token": nearly uniform logits, as released; see `TokenOptimizer`."""
        statistics: VarianceStatistics = "image"
        """"batch": boundaries are judged over the whole batch, as released."""
        stem_norm: StemNorm = "batch"
        """Norm of the pyramid's first convolution. "image": over each image by itself, for maps
        of scenes with other light or processing; a tile of one cover then looks like any."""
        output_norm: OutputNorm = "layer"
        """Norm of the four maps for the head: over the channels of each pixel, or over the
        "batch" as released. In a small batch the means of few images are taken away, in a test
        those of all: what the head then reads it has not seen."""
        enhancer_ratio: float = Field(0.25, gt=0)
        """Width inside an enhancer over D."""
        laplacian: Laplacian = "directional"
        """"free": one trained kernel of one direction, as released; see `Edges`."""
        pool: Pooling = "adaptive"
        """"identity": a pooling that does nothing, as released."""
        drop_path: float = Field(0.1, ge=0, lt=1)
        """Share of images that skip an enhancer in training; 0.4 as released."""
        extractor_attention: bool = False
        """Enhancers also look at the backbone's tokens, as in ViT-Adapter; not in the release."""

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
        # Even grids, so that the coarsest level covers exactly the image.
        self.multiple = 2 * backbone.patch
        self.num_prefix_tokens = backbone.num_prefix_tokens
        bounds = [stage * depth // STAGES for stage in range(STAGES + 1)]
        self.first = {block: stage for stage, block in enumerate(bounds[:-1])}
        self.last = {block - 1: stage for stage, block in enumerate(bounds[1:])}
        experts = None
        if config.twe:
            experts = Experts(
                config.channels,
                config.kernels,
                active=config.active,
                shares=config.shares,
                trained=config.trained_experts,
                running=config.running,
            )
        self.pyramid = Pyramid(
            len(backbone.bands),
            dim,
            channels=config.channels,
            experts=experts,
            running=config.running,
            stem_norm=config.stem_norm,
        )
        self.level_embed = nn.Parameter(torch.randn(LEVELS - 1, dim))
        self.injectors = nn.ModuleList(_injector(config, dim) for _ in range(STAGES))
        enhancers = STAGES + LAST if config.see else 0
        self.enhancers = nn.ModuleList(_enhancer(config, dim, hidden) for _ in range(enhancers))
        norm = BatchNorm if config.output_norm == "batch" else LayerNorm2d
        self.norms = nn.ModuleList(norm(dim) for _ in range(LEVELS))

    def num_feature_maps(self, backbone: Backbone) -> int:
        """Count the maps of the pyramid: 4, 2, 1 and 1/2 times the grid of patches."""
        return LEVELS

    def no_weight_decay(self) -> Collection[Parameter]:
        """Return the branch logits of the enhancers."""
        return [m.shares for m in self.modules() if isinstance(m, SpatialExpert)]

    def begin(self, image: Tensor, grid: Grid) -> WeftState:
        """Read the image into the pyramid."""
        finest, *levels = self.pyramid(image, (grid.h, grid.w))
        marked = [
            self.pyramid.wide(level) + embed[:, None, None]
            for level, embed in zip(levels, self.level_embed, strict=True)
        ]
        sizes = tuple((level.shape[2], level.shape[3]) for level in levels)
        return WeftState(grid, finest=finest, tokens=join(marked), sizes=sizes)

    def before_block(self, index: int, tokens: Tensor, state: WeftState) -> Tensor:
        """Inject the pyramid before the first block of a stage."""
        if index not in self.first:
            return tokens
        prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        injector = self.injectors[self.first[index]]
        added = injector(patches, state.grid, state.tokens, state.sizes)
        return torch.cat((prefix, patches + added), dim=1)

    def after_block(self, index: int, tokens: Tensor, state: WeftState) -> Tensor:
        """Enhance the pyramid after the last block of a stage, and keep the backbone's map."""
        if index not in self.last:
            return tokens
        stage, grid = self.last[index], state.grid
        seen = mean_over_groups(tokens[:, self.num_prefix_tokens :], grid)
        final = stage == STAGES - 1
        for enhancer in self.enhancers[stage : None if final else stage + 1]:
            state.tokens = enhancer(state.tokens, state.sizes, seen, (grid.h, grid.w))
        state.stages += split(seen, [(grid.h, grid.w)])
        return tokens

    def finish(self, maps: list[Tensor], state: WeftState) -> Features:
        """Add both streams to four maps; the backbone's tapped maps are not used."""
        levels = split(state.tokens, state.sizes)
        first, *others = state.stages
        # The sums, as large as all tokens together, are not kept for backward.
        added = [recomputed(self._finest, state.finest, levels[0], first)]
        added += [
            recomputed(self._sum, number, level, stage)
            for number, (level, stage) in enumerate(zip(levels, others, strict=True), start=1)
        ]
        for (_, statistics), norm in zip(added, self.norms, strict=True):
            if isinstance(norm, BatchNorm):
                norm.follow([statistics], 0)
        return Features([image for image, _ in added])

    def _finest(
        self, narrow: Tensor, coarser: Tensor, stage: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        level = self.pyramid.wide(narrow)
        return self._sum(0, level + _resized(coarser, level), stage)

    def _sum(self, number: int, level: Tensor, stage: Tensor) -> tuple[Tensor, Tensor | None]:
        """Add a stage's map to a level, and normalise; also return a batch norm's statistics."""
        total, norm = level + _resized(stage, level), self.norms[number]
        if isinstance(norm, BatchNorm):
            return norm.normalise(total, 0)
        return norm(total), None

    def log_entry(self) -> dict[str, Json]:
        """Return the experts' usage in the last batch and the strength of each injection."""
        gammas = [injector.get_parameter("gamma").detach() for injector in self.injectors]
        return {
            "experts": [float(share) for share in self.pyramid.usage],
            "injection": [float(gamma.abs().mean()) for gamma in gammas],
        }

    @classmethod
    def figures(cls, records: Sequence[dict[str, Json]]) -> Iterator[tuple[str, Figure]]:
        """Draw how often each expert was chosen, and how the injections grew."""
        from rsseg_cli.report.charts import new_figure

        lines = [(line["step"], line["method"]) for line in records if "method" in line]
        if not lines:
            return
        figure, axes = new_figure(columns=2, size=(10, 3.5))
        titles = {
            "experts": ("share of images that chose each expert", "expert"),
            "injection": ("mean |gamma| of each injection", "stage"),
        }
        for axis, (key, (title, label)) in zip(axes, titles.items(), strict=True):
            steps: list[Any] = [step for step, _ in lines]
            values = [own[key] for _, own in lines if isinstance(own, dict)]
            for number, series in enumerate(zip(*values, strict=True), start=1):
                axis.plot(steps, series, label=f"{label} {number}")
            axis.set_title(title)
            axis.set_xlabel("step")
            if axis.lines:
                axis.legend()
        yield "experts and injections", figure


def _injector(config: Weft.Config, dim: int) -> Injector:
    attention = _attention(config, dim, levels=LEVELS - 1)
    if not config.esto:
        return Injector(dim, attention, None)
    optimizer = TokenOptimizer(
        dim,
        heads=config.subspaces,
        similarity=config.similarity,
        statistics=config.statistics,
    )
    return Injector(dim, attention, optimizer)


def _enhancer(config: Weft.Config, dim: int, hidden: int) -> Enhancer:
    expert = SpatialExpert(
        hidden,
        levels=LEVELS - 1,
        laplacian=config.laplacian,
        pool=config.pool,
        running=config.running,
    )
    attention = _attention(config, dim, levels=1) if config.extractor_attention else None
    return Enhancer(dim, hidden, expert, drop_path=config.drop_path, attention=attention)


def _attention(config: Weft.Config, dim: int, *, levels: int) -> NormedDeformableAttention:
    return NormedDeformableAttention(
        dim,
        inner=int(dim * config.attention_ratio),
        levels=levels,
        heads=config.heads,
        points=config.points,
    )


def _check_widths(config: Weft.Config, dim: int, hidden: int, depth: int) -> None:
    """Refuse a backbone whose width or depth cannot be divided as the settings want."""
    if depth < STAGES:
        raise RssegError(
            f"weft works in {STAGES} stages, the backbone has {depth} blocks",
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
    """Resize a map bilinearly to the sides of another."""
    return F.interpolate(image, like.shape[-2:], mode="bilinear", align_corners=False)
