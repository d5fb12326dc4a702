"""CrossEarth-Gate: Fisher information selects the modules that train (arXiv 2511.20302).

Every block has three modules: spatial (LoRA on queries and values), semantic (a bottleneck parallel
to the MLP) and frequency (an Earth-Adapter at the output). Every `every` steps, `samples` backward
passes of single samples measure the diagonal empirical Fisher information of each module: the sum
over its parameters of the mean squared gradient. The best `active` modules train until the next
selection; the others stay in the forward pass, unchanged.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import Parameter

from rsseg_cli.contract import Backbone, Grid, Method, Projection, Role, State, Step
from rsseg_cli.errors import RssegError
from rsseg_cli.methods._fisher.module_selection import (
    Normalise,
    draw_pathways,
    normalise,
    squared_gradients,
    top,
)
from rsseg_cli.methods.adaptformer import AdaptFormer
from rsseg_cli.methods.earth_adapter import EarthAdapter, FrequencyBox, Spectrum
from rsseg_cli.methods.lora import Lora
from rsseg_cli.settings import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pathway = Literal["spatial", "semantic", "frequency"]
Selection = Literal["fisher", "static", "random", "all"]


class CrossEarthGate(Method[State]):
    """Combines LoRA, AdaptFormer and Earth-Adapter, and trains the best of their modules."""

    class Config(Method.Config):
        """Settings of CrossEarth-Gate; see the preset for their sources."""

        pathways: tuple[Pathway, ...] = Field(("spatial", "semantic", "frequency"), min_length=1)
        """Types of modules in every block."""
        active: int | None = Field(None, ge=1)
        """Modules that train at once; null: a quarter of three per block, 18 of 72."""
        every: int = Field(100, ge=1)
        """Steps between selections."""
        samples: int = Field(16, ge=1)
        """Samples per selection."""
        selection: Selection = "fisher"
        """`static` selects once, at the first step; `random` draws; `all` trains all modules."""
        normalise: Normalise = "type"
        """Divide scores by their sum over the blocks of a `type`, the types of a `layer`, or 1."""
        unselected: Literal["frozen", "bypass"] = "frozen"
        """Modules that are not selected act unchanged (`frozen`) or not at all (`bypass`)."""
        rank: int = Field(64, ge=1)
        """Rank of the spatial modules."""
        alpha: float = Field(64.0, gt=0)
        """Spatial updates are scaled by alpha / rank."""
        bottleneck: int = Field(64, ge=1)
        """Width of the semantic modules."""
        scale: float = 0.1
        """Factor of the semantic modules."""
        frequency_bottleneck: int = Field(32, ge=1)
        """Width of each expert of the frequency modules."""
        rho: float = Field(0.3, gt=0, le=1)
        """Fraction of the spectrum's rows and columns that is low."""
        box: FrequencyBox = "paper"

        @field_validator("pathways")
        @classmethod
        def _once(cls, pathways: tuple[Pathway, ...]) -> tuple[Pathway, ...]:
            if len(set(pathways)) < len(pathways):
                raise ValueError("each pathway can be named once")
            return pathways

    active: Tensor
    """(T, L) bool: the modules that train; all before the first selection."""
    ever: Tensor
    """(T, L) bool: the modules that have trained."""
    scores: Tensor
    """(T, L): scores of the last selection."""
    selected: Tensor
    """Step of the last selection; -1 before."""
    steps: Tensor
    """Steps so far."""
    trained: Tensor
    """Trainable parameters, summed over the steps so far."""
    draws: Tensor
    """Seed of random selections, drawn at construction."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.config = config
        self.spatial: Lora | None = None
        self.semantic: AdaptFormer | None = None
        self.frequency: EarthAdapter | None = None
        self.toolbox = [self._insert(pathway, backbone) for pathway in config.pathways]
        """(T, L) lists of modules that are selected together: LoRA has one per projection."""
        self.count = _count(config, backbone.depth)
        self.register_buffer("active", torch.ones(len(self.toolbox), backbone.depth).bool())
        self.register_buffer("ever", torch.zeros_like(self.active))
        self.register_buffer("scores", torch.zeros(self.active.shape))
        self.register_buffer("selected", torch.full((), -1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("trained", torch.zeros((), dtype=torch.int64))
        self.register_buffer("draws", torch.randint(2**62, ()))
        if config.unselected == "bypass":
            for module in (module for row in self.toolbox for group in row for module in group):
                module.register_buffer("open", torch.ones(()))
                module.register_forward_hook(_close)
        self._applied = False
        self._trainable = 0
        self._selections: list[Json] = []
        self._started: float | None = None
        self._selecting_s = 0.0

    def _insert(self, pathway: Pathway, backbone: Backbone) -> list[list[nn.Module]]:
        """Add the modules of one type to a backbone, and list them by block."""
        config = self.config
        if pathway == "semantic":
            adaptformer = AdaptFormer.Config(
                bottleneck=config.bottleneck, scale=config.scale, activation="gelu", dropout=0.0
            )
            self.semantic = AdaptFormer(adaptformer, backbone)
            return [[block] for block in self.semantic.blocks]
        if pathway == "frequency":
            earth_adapter = EarthAdapter.Config(
                bottleneck=config.frequency_bottleneck, rho=config.rho, box=config.box
            )
            self.frequency = EarthAdapter(earth_adapter, backbone)
            return [[block] for block in self.frequency.blocks]
        lora = Lora.Config(rank=config.rank, alpha=config.alpha, roles=("q", "v"))
        self.spatial = Lora(lora, backbone)
        updates = iter(self.spatial.updates)
        return [
            [next(updates) for role in lora.roles for _ in _linears(backbone, index, role)]
            for index in range(backbone.depth)
        ]

    # --- forward -----------------------------------------------------------------------------
    def begin(self, image: Tensor, grid: Grid) -> State:
        """Prepare the frequency modules."""
        return self.frequency.begin(image, grid) if self.frequency else State(grid)

    def after_block(self, index: int, tokens: Tensor, state: State) -> Tensor:
        """Apply the frequency module; hooks apply the other two inside the block."""
        if self.frequency and isinstance(state, Spectrum):
            return self.frequency.after_block(index, tokens, state)
        return tokens

    # --- training ----------------------------------------------------------------------------
    def before_step(self, step: Step) -> None:
        """Select modules every `every` steps, and train the selected ones only."""
        now = time.perf_counter()
        if self._started is None:
            self._started = now
        if self._is_due(step.index):
            self._select(step)
            self._selecting_s += time.perf_counter() - now
        if not self._applied:
            self._apply_selection()
        self.steps += 1
        self.trained += self._trainable

    def _is_due(self, index: int) -> bool:
        selection = self.config.selection
        if selection == "all":
            return False
        return index == 0 if selection == "static" else index % self.config.every == 0

    def _select(self, step: Step) -> None:
        if self.config.selection == "random":
            generator = torch.Generator().manual_seed(int(self.draws) + step.index)
            scores = torch.rand(self.active.shape, generator=generator)
        else:
            scores = normalise(self._fisher(step), self.config.normalise).cpu()
        self.scores.copy_(scores)
        self.active.copy_(top(scores, self.count))
        self.selected.fill_(step.index)
        self._applied = False

    def _fisher(self, step: Step) -> Tensor:
        """Compute the Fisher information of every module (T, L)."""
        parameters = self._by_module()
        self._train_only(torch.ones_like(self.active))
        sums = torch.zeros(self.active.shape, device=self.active.device)
        samples = torch.zeros((), device=self.active.device)
        for probe in step.probes(self.config.samples):
            probe.backward()
            sums += squared_gradients(parameters)
            samples += 1
        fisher = step.average(sums) / step.average(samples)
        if not bool(torch.isfinite(fisher).all()):
            raise RssegError(
                f"the gradients that select modules are not finite numbers at step {step.index:,}",
                where="method.selection",
                fix="a lower learning rate (--set optimizer.lr) or training.precision=bf16; "
                "--resume goes on from the last good state",
            )
        return fisher

    def _apply_selection(self) -> None:
        """Set `requires_grad` according to `active`, and log the selection."""
        self._train_only(self.active)
        self.ever |= self.active
        self._trainable = self._size(self.active)
        self._applied = True
        if self.selected < 0:
            return
        active: dict[str, Json] = {}
        scores: dict[str, Json] = {}
        for row, name in enumerate(self.config.pathways):
            active[name] = self.active[row].nonzero()[:, 0].tolist()
            scores[name] = [float(f"{score:.4g}") for score in self.scores[row].tolist()]
        self._selections.append({"step": int(self.selected), "active": active, "scores": scores})

    def _train_only(self, active: Tensor) -> None:
        for row, flags in zip(self.toolbox, active.tolist(), strict=True):
            for modules, flag in zip(row, flags, strict=True):
                for module in modules:
                    module.requires_grad_(flag)
                    if self.config.unselected == "bypass":
                        module.get_buffer("open").fill_(float(flag))

    def _by_module(self) -> list[list[list[Parameter]]]:
        """List the parameters of each module (T, L)."""
        return [
            [[p for module in group for p in module.parameters()] for group in row]
            for row in self.toolbox
        ]

    def _size(self, modules: Tensor) -> int:
        """Count the parameters of the marked modules (T, L)."""
        sizes = [[sum(p.numel() for p in ps) for ps in row] for row in self._by_module()]
        return int(torch.tensor(sizes)[modules.cpu()].sum())

    # --- figures -------------------------------------------------------------------------------
    def log_entry(self) -> dict[str, Json]:
        """Return sizes, the cost of the selections, and the selections since the last entry."""
        selections, self._selections = self._selections, []
        spent = time.perf_counter() - self._started if self._started is not None else 0.0
        return {
            "active": int(self.active.sum()),
            "trainable": self._trainable,
            "trainable_mean": int(self.trained) // max(1, int(self.steps)),
            "trainable_ever": self._size(self.ever),
            "selection_s": self._selecting_s,
            "cost": {"selection": self._selecting_s / spent if spent else 0.0},
            "selections": selections,
        }

    @classmethod
    def figures(cls, records: Sequence[dict[str, Json]]) -> Iterator[tuple[str, Figure]]:
        """Draw the selected pathways over time."""
        lines: list[Any] = [line.get("method", {}) for line in records]
        # A resumed run logs its current selection again.
        by_step = {entry["step"]: entry for line in lines for entry in line.get("selections", ())}
        if by_step:
            yield "pathways", draw_pathways(list(by_step.values()))


def _count(config: CrossEarthGate.Config, depth: int) -> int:
    """Return the number of modules that are active at once."""
    modules = len(config.pathways) * depth
    # A quarter of three types, also in ablations with fewer types: 18 of 72 in the paper.
    default = max(1, round(0.75 * depth))
    count = default if config.active is None else config.active
    if count > modules:
        raise RssegError(
            f"{count} of {modules} modules cannot be active ({depth} blocks)",
            where="method.active",
            fix=f"a number in 1..{modules}, or null for {default}",
        )
    return count


def _linears(backbone: Backbone, index: int, role: Role) -> list[Projection]:
    projections = backbone.projections(index, role)
    if not projections:
        raise RssegError(
            f"block {index} of the backbone has no {role} projection for spatial modules",
            where="method.pathways",
            fix="method.pathways=[semantic, frequency], or another backbone",
        )
    return projections


def _close(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output * module.get_buffer("open")
