"""SpectralMoE: token experts with a gate per modality, fused with depth (arXiv 2603.13352)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from rsseg_cli.contract import Backbone, Features, Grid, QueryShape, batch_shard
from rsseg_cli.methods._token import plots
from rsseg_cli.methods._token.adapter import TokenAdapter, TokenSettings
from rsseg_cli.methods._token.depth_encoder import DepthMethod, DepthName, DepthSettings, DepthState
from rsseg_cli.methods._token.gate import Gate, GateKind, imbalance
from rsseg_cli.methods._token.tokens import Routes
from rsseg_cli.settings import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Fusion = Literal["paper", "released", "add"]
MODALITIES = ("visual", "depth")


@dataclass
class Routing(DepthState):
    """Routes of the gates and their balance."""

    routes: list[Routes] = field(default_factory=list)
    """Of the last block, per modality."""
    balance: list[Tensor] = field(default_factory=list)
    """Imbalance of the gate weights, per block and modality."""
    load: list[Tensor] = field(default_factory=list)
    """Imbalance of the expected loads, per block and modality."""


class SpectralMoe(DepthMethod[Routing]):
    """Refines every block's output by token experts, routed by visual and by depth features."""

    class Config(DepthSettings, TokenSettings):
        """Settings of SpectralMoE; equation numbers are the paper's."""

        experts: int = Field(6, ge=1)
        """Experts per block E."""
        k: int = Field(1, ge=1)
        """Experts per token, equation (2)."""
        gate: GateKind | Literal["none"] = "laplace"
        """Scores by the distance to the experts' centres, equation (1), or by the inner product;
        `none` gives every expert the same weight (k = experts)."""
        gates: Literal["dual", "shared"] = "dual"
        """A gate per modality, or one for both."""
        fusion: Fusion = "paper"
        """Equation (6), the authors' code (`released`), or the ablation without attention
        (`add`)."""
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

    usage: Tensor
    """(L, modalities, E): sums of the experts' gate-weight fractions since the last entry."""

    def __init__(
        self, config: Config, backbone: Backbone, queries: QueryShape | None = None
    ) -> None:
        super().__init__(config, backbone)
        self.config = config
        self.modalities = 1 if self.depth_branch is None else 2
        self.adapter = TokenAdapter(backbone, config, queries, experts=config.experts)
        for index in range(backbone.depth):
            self.adapter.block(index).init_zero()
        per_block = self.modalities if config.gates == "dual" else 1
        self.gates = nn.ModuleList()
        if config.gate != "none":
            for _ in range(backbone.depth * per_block):
                self.gates.append(Gate(backbone.dim, config.experts, k=config.k, kind=config.gate))
        shape = (backbone.depth, self.modalities, config.experts)
        self.register_buffer("usage", torch.zeros(shape), persistent=False)

    def no_weight_decay(self) -> Collection[Parameter]:
        """Return the tokens and the gates."""
        return [*self.adapter.no_weight_decay(), *self.gates.parameters()]

    # --- forward -----------------------------------------------------------------------------
    def begin(self, image: Tensor, grid: Grid) -> Routing:
        """Embed the image in the depth encoder."""
        state = Routing(grid)
        if self.depth_branch is not None:
            self.depth_branch.begin(image, state)
        return state

    def after_block(self, index: int, tokens: Tensor, state: Routing) -> Tensor:
        """Refine the patch tokens, equations (1) to (7)."""
        prefix, patches = tokens.tensor_split([self.num_prefix_tokens], 1)
        inputs = [patches]
        if self.depth_branch is not None:
            inputs.append(self.depth_branch.advance(index, state))
        state.routes = self._route(index, inputs)
        self._balance(index, state)
        experts = self.adapter.block(index)
        routes: list[Routes] | list[None] = state.routes or [None] * len(inputs)
        maps = [experts.coefficients(*pair) for pair in zip(inputs, routes, strict=True)]
        span = experts.span(self.adapter.value)
        fused = maps[0] if len(maps) == 1 else fuse(maps[0], maps[1], span, self.config.fusion)
        return self.adapter.refine(prefix, patches, fused @ span)

    def finish(self, maps: list[Tensor], state: Routing) -> Features:
        """Return maps, queries and the losses of equations (8) to (11), averaged over blocks."""
        losses = {}
        if state.balance:
            losses["balance"] = self.config.balance_weight * torch.stack(state.balance).mean()
        if state.load:
            losses["load"] = self.config.load_weight * torch.stack(state.load).mean()
        return Features(maps, self.adapter.queries(), losses)

    def _route(self, index: int, inputs: list[Tensor]) -> list[Routes]:
        """Route the features (B, N, D) of each modality by the gates of a block."""
        if not self.gates:
            return []
        per_block = len(self.gates) // len(self.adapter.blocks)
        first, last = index * per_block, (index + 1) * per_block - 1
        gates = [self.gates[min(first + number, last)] for number in range(len(inputs))]
        return [cast(Routes, gate(x)) for gate, x in zip(gates, inputs, strict=True)]

    def _balance(self, index: int, state: Routing) -> None:
        """Accumulate the balance of a block's experts: equations (10) and (11), and the load."""
        if not self.training or not state.routes:
            return
        totals = [batch_shard.mean(routes.weights.sum((0, 1))) for routes in state.routes]
        with torch.no_grad():
            self.usage[index] += torch.stack([total / total.sum() for total in totals])
        if self.config.experts > 1:
            state.balance += [imbalance(total) for total in totals]
            state.load += [
                imbalance(batch_shard.mean(r.load)) for r in state.routes if r.load is not None
            ]

    # --- figures and maps ----------------------------------------------------------------------
    def log_entry(self) -> dict[str, Json]:
        """Return each expert's fraction of the gate weights since the last entry, and the scale."""
        entry: dict[str, Json] = {"scale": float(self.adapter.scale.detach())}
        if self.gates and bool(self.usage.any()):
            fractions = (self.usage / self.usage.sum(-1, keepdim=True)).cpu()
            for number, name in enumerate(MODALITIES[: self.modalities]):
                rows = fractions[:, number].tolist()
                entry[name] = [[round(fraction, 4) for fraction in row] for row in rows]
            self.usage.zero_()
        return entry

    @classmethod
    def figures(cls, records: Sequence[dict[str, Json]]) -> Iterator[tuple[str, Figure]]:
        """Draw the experts' use over time, per block and modality."""
        yield from plots.draw(records, MODALITIES)

    def explanations(self) -> Mapping[str, tuple[str, ...]]:
        """Return the map of the gate weights of each modality."""
        if not self.gates:
            return {}
        names = ("routing", "routing-depth")[: self.modalities]
        return dict.fromkeys(names, tuple(f"expert {e + 1}" for e in range(self.config.experts)))

    def explain(self, name: str, state: Routing) -> Tensor:
        """Return the gate weights of a block, averaged over the groups of a location."""
        routes = state.routes[list(self.explanations()).index(name)]
        return state.grid.mean_over_groups(routes.weights)


def fuse(visual: Tensor, depth: Tensor, span: Tensor, kind: Fusion) -> Tensor:
    """Fuse the maps of the visual and the depth features.

    Both are F = M V: coefficients M (B, N, R) of a common span V (R, D), see `_token.tokens`. The
    attention between them requires only F F'^T = M (V V^T) M'^T, and its result has coefficients.

    - `paper`, equation (6): softmax(F_v F_d^T / sqrt D) F_d
    - `released`, the authors' code: every row of F_v times the diagonal of softmax(F_d F_v^T /
      sqrt D)
    - `add`, without attention: F_v + F_d

    Args:
        visual: Coefficients of F_v (B, N, R).
        depth: Coefficients of F_d (B, N, R).
        span: V (R, D).
        kind: One of the above.

    Returns:
        Coefficients (B, N, R) of the fused map.
    """
    if kind == "add":
        return visual + depth
    scale = span.shape[-1] ** -0.5
    gram = span @ span.mT
    if kind == "released":
        scores = (depth @ gram @ visual.mT).float() * scale
        log_weights = scores.diagonal(dim1=1, dim2=2) - scores.logsumexp(-1)
        return cast(Tensor, visual * log_weights.exp()[..., None])
    query, key = (visual @ gram)[:, None], depth[:, None]
    return F.scaled_dot_product_attention(query, key, key, scale=scale)[:, 0]
