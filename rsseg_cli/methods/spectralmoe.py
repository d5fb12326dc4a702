"""SpectralMoE: token experts behind a gate per modality, fused with depth (arXiv 2603.13352)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import Parameter

from rsseg_cli.contract import Backbone, Features, Grid, QueryShape, batch_shard
from rsseg_cli.methods._token import plots
from rsseg_cli.methods._token.adapter import TokenAdapter, count_tokens
from rsseg_cli.methods._token.depth_encoder import (
    DepthMethod,
    DepthName,
    DepthSettings,
    DepthState,
    DepthView,
)
from rsseg_cli.methods._token.fusion import Fusion, fuse
from rsseg_cli.methods._token.gate import Gate, GateKind, imbalance
from rsseg_cli.methods._token.tokens import Routes
from rsseg_cli.settings import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODALITIES = ("visual", "depth")


@dataclass
class Routing(DepthState):
    """The routes of the gates and their balance."""

    routes: list[Routes] = field(default_factory=list)
    """After the last block, per modality."""
    balance: list[Tensor] = field(default_factory=list)
    load: list[Tensor] = field(default_factory=list)


class SpectralMoe(DepthMethod[Routing]):
    """Refines every block's output by experts chosen from it and from its depth features."""

    class Config(DepthSettings):
        """Settings of SpectralMoE; equation numbers are the paper's."""

        experts: int = Field(6, ge=1)
        """Sets of tokens per block E."""
        k: int = Field(1, ge=1)
        """Experts per token, equation (2)."""
        tokens: int | None = Field(None, ge=2)
        """Tokens per expert m; null: as many as the queries that the head takes, otherwise 100."""
        rank: int = Field(16, ge=1)
        gate: GateKind | Literal["none"] = "laplace"
        """Distance to the experts' centres in equation (1), or the inner product; `none` gives
        every expert the same weight (k = experts)."""
        gates: Literal["dual", "shared"] = "dual"
        """A gate per modality, or one for both."""
        fusion: Fusion = "paper"
        """Equation (6); `released` is what the authors' code does, `add` the ablation without
        attention."""
        depth: DepthName = "prompt_depth_anything_large"
        """The depth encoder; `off` is the ablation without depth."""
        balance_weight: float = Field(1.0e-2, ge=0)
        """Lambda of equation (9), which the paper does not state; the authors' code has 1e3."""
        load_weight: float = Field(1.0e-2, ge=0)
        """Weight of the load term of the authors' code; at k = 1 it alone trains the gates."""

        @model_validator(mode="after")
        def _experts_suffice(self) -> SpectralMoe.Config:
            if self.k > self.experts:
                raise ValueError(f"k {self.k} is more than experts {self.experts}")
            if self.gate == "none" and self.k < self.experts:
                raise ValueError(f"without a gate k is the number of experts, {self.experts}")
            return self

    makes_queries: ClassVar[bool] = True
    usage: Tensor

    def __init__(
        self, config: Config, backbone: Backbone, queries: QueryShape | None = None
    ) -> None:
        super().__init__(config, backbone)
        self.config, self.num_prefix_tokens = config, backbone.num_prefix_tokens
        off = config.depth == "off"
        self.view = None if off else DepthView(config.depth, config.depth_weights, backbone)
        self.modalities = 1 if off else 2
        self.adapter = TokenAdapter(
            backbone.depth,
            backbone.dim,
            experts=config.experts,
            tokens=count_tokens(config.tokens, queries),
            rank=config.rank,
            queries=queries,
        )
        self.adapter.start_from_zero()
        own = self.modalities if config.gates == "dual" else 1
        self.gates = nn.ModuleList()
        if config.gate != "none":
            for _ in range(backbone.depth * own):
                self.gates.append(Gate(backbone.dim, config.experts, k=config.k, kind=config.gate))
        # Shares since the last record: (L, modalities, E).
        shape = (backbone.depth, self.modalities, config.experts)
        self.register_buffer("usage", torch.zeros(shape), persistent=False)

    def no_weight_decay(self) -> Collection[Parameter]:
        """Return the tokens and the gates."""
        return [*self.adapter.no_weight_decay(), *self.gates.parameters()]

    # --- forward -----------------------------------------------------------------------------
    def begin(self, image: Tensor, grid: Grid) -> Routing:
        """Embed the image in the depth encoder."""
        state = Routing(grid)
        if self.view is not None:
            self.view.begin(image, state)
        return state

    def after_block(self, index: int, tokens: Tensor, state: Routing) -> Tensor:
        """Refine the patch tokens, equations (1) to (7)."""
        prefix, patches = tokens.tensor_split([self.num_prefix_tokens], 1)
        seen = [patches]
        if self.view is not None:
            seen.append(self.view.advance(index, state))
        state.routes = self._route(index, seen)
        self._judge(index, state)
        experts = self.adapter.block(index)
        routes: list[Routes] | list[None] = state.routes or [None] * len(seen)
        found = [experts.coefficients(*pair) for pair in zip(seen, routes, strict=True)]
        span = experts.span(self.adapter.value)
        mixed = found[0]
        if len(found) == 2:
            mixed = fuse(found[0], found[1], span, self.config.fusion)
        return self.adapter.refine(prefix, patches, mixed @ span)

    def finish(self, maps: list[Tensor], state: Routing) -> Features:
        """Return maps, queries and the losses of equations (8) to (11), averaged over blocks."""
        losses = {}
        if state.balance:
            losses["balance"] = self.config.balance_weight * torch.stack(state.balance).mean()
        if state.load:
            losses["load"] = self.config.load_weight * torch.stack(state.load).mean()
        return Features(maps, self.adapter.queries(), losses)

    def _route(self, index: int, seen: list[Tensor]) -> list[Routes]:
        """Return the experts that the gates of a block choose for each modality (B, N, D)."""
        if not self.gates:
            return []
        own = len(self.gates) // len(self.adapter.blocks)
        gates = [self.gates[index * own + min(number, own - 1)] for number in range(len(seen))]
        return [cast(Routes, gate(one)) for gate, one in zip(gates, seen, strict=True)]

    def _judge(self, index: int, state: Routing) -> None:
        """Accumulate the balance of a block's experts: equations (10) and (11), and the load."""
        if not self.training or not state.routes:
            return
        totals = [batch_shard.mean(routes.shares.sum((0, 1))) for routes in state.routes]
        with torch.no_grad():
            self.usage[index] += torch.stack([total / total.sum() for total in totals])
        if self.config.experts > 1:
            state.balance += [imbalance(total) for total in totals]
            state.load += [
                imbalance(batch_shard.mean(r.load)) for r in state.routes if r.load is not None
            ]

    # --- what a user sees ----------------------------------------------------------------------
    def log_entry(self) -> dict[str, Json]:
        """Return each expert's share of the tokens since the last record, and the scale."""
        record: dict[str, Json] = {"scale": float(self.adapter.scale.detach())}
        if self.gates and bool(self.usage.any()):
            shares = (self.usage / self.usage.sum(-1, keepdim=True)).cpu()
            for number, name in enumerate(MODALITIES[: self.modalities]):
                rows = shares[:, number].tolist()
                record[name] = [[round(share, 4) for share in row] for row in rows]
            self.usage.zero_()
        return record

    @classmethod
    def figures(cls, records: Sequence[dict[str, Json]]) -> Iterator[tuple[str, Figure]]:
        """Draw the experts' use over time, per block and modality."""
        yield from plots.draw(records, MODALITIES)

    def explanations(self) -> Mapping[str, tuple[str, ...]]:
        """Return the maps of the experts of each modality, visual and depth."""
        if not self.gates:
            return {}
        names = ("routing", "routing-depth")[: self.modalities]
        return dict.fromkeys(names, tuple(f"expert {e + 1}" for e in range(self.config.experts)))

    def explain(self, name: str, state: Routing) -> Tensor:
        """Return the experts' shares after a block, averaged over a location's groups."""
        shares = state.routes[list(self.explanations()).index(name)].shares
        return state.grid.mean_over_groups(shares)
